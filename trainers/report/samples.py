"""Samples: a few records of a pipeline as HTML, images as images."""

import base64
import html
import io
from typing import Any

import datasets
import jax
import numpy as np
from flax import nnx
from PIL import Image

from datarax import Pipeline
from datarax.columns.rows import absent_of
from datarax.pipeline.batches import staged

_RECORDS = 8
_TEXT = 240  # characters of a text
_NUMBERS = 8  # of an array
_SIDE = 256  # pixels of an image


def cards(pipeline: Pipeline) -> str:
    """Returns records from all over a source as cards, as the stages give them.

    Of a stream it returns nothing: it would be read.

    Args:
        pipeline: The pipeline, which stays as it is.
    """
    source: Any = pipeline.source
    if not source.is_indexable:
        return ""
    is_staged = not pipeline.stages.is_empty
    most = min(_RECORDS, pipeline.batch_size) if is_staged else _RECORDS
    rows = sorted({i * (len(source) - 1) // max(1, most - 1) for i in range(most)})
    columns = source[np.array(rows)]  # which reads no others, where none are loaded
    if is_staged:
        columns = _staged(pipeline, columns, len(rows))
    features = source.features
    records = (
        "".join(
            f"<dt>{html.escape(name)}</dt><dd>{_cell(_row(column, row), features.get(name))}</dd>"
            for name, column in columns.items()
        )
        for row in range(len(rows))
    )
    return "".join(f"<dl>{record}</dl>" for record in records)


def _staged(pipeline: Pipeline, columns: dict[str, Any], size: int) -> dict[str, Any]:
    """Returns columns after the stages, which are given a batch of the size that they expect."""
    ranks = np.arange(pipeline.batch_size, dtype=np.uint32)
    batch = jax.tree.map(lambda column: column[ranks % size], columns)
    stages, key = nnx.clone(pipeline.stages), pipeline.key.get_value()
    absent = absent_of(pipeline.source.host_columns())
    return jax.device_get(staged(stages, key, batch, absent, np.uint32(0), ranks))


def _row(column: Any, row: int) -> Any:
    if isinstance(column, dict):
        return {name: _row(inner, row) for name, inner in column.items()}
    return column[row]


def _cell(value: Any, feature: Any) -> str:
    image = _image(value, feature)
    if image is not None:
        return f'<img alt="" src="data:image/png;base64,{_png(image)}">'
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(name)}: {_cell(v, None)}" for name, v in value.items())
    names = getattr(feature, "names", None)
    if names and np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
        return html.escape(names[int(value)] if 0 <= int(value) < len(names) else str(value))
    if isinstance(value, np.ndarray) and value.ndim:
        some = ", ".join(f"{x:.4g}" for x in value.ravel()[:_NUMBERS].tolist())
        more = " …" if value.size > _NUMBERS else ""
        shape = "×".join(map(str, value.shape))
        return f"<code>{html.escape(some)}{more}</code> <small>{shape} {value.dtype}</small>"
    text = f"{value:.6g}" if isinstance(value, np.floating | float) else str(value)
    return html.escape(text[:_TEXT] + " …" * (len(text) > _TEXT))


def _image(value: Any, feature: Any) -> Image.Image | None:
    """Returns a value as an image where it looks like one, a float one from its least value on."""
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3):
        return None
    if np.issubdtype(value.dtype, np.floating) and isinstance(feature, datasets.Image):
        value = np.nan_to_num(value.astype(np.float32), posinf=0, neginf=0)
        value = value - value.min()
        value = (255 * value / max(value.max(), 1e-6)).astype(np.uint8)
    if value.dtype != np.uint8:
        return None
    if value.ndim == 3 and value.shape[-1] == 1:
        value = value[..., 0]
    is_one = value.ndim == 2 or value.shape[-1] in (3, 4)
    return Image.fromarray(value) if is_one and min(value.shape[:2]) > 3 else None


def _png(image: Image.Image) -> str:
    if image.mode not in ("L", "RGB", "RGBA", "P", "1"):
        image = image.convert("RGB")
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
