"""One function from a name to a source: eager, by number or on demand, as its size says."""

import dataclasses
import os
import sys
from logging import getLogger
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.columns.transform import takes_rng
from datarax.hub.load import load_split
from datarax.hub.network import patiently
from datarax.hub.secrets import redacted
from datarax.sources.hf_source.config import HFEagerConfig, HFIndexedConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.indexed import HFIndexedSource
from datarax.sources.hf_source.streaming import HFStreamingSource

logger = getLogger("datarax.sources.hf_source")

_SHARE = 0.1  # of the device's memory, which the model and its optimizer need too
_STREAM = HFStreamingSource
_CONFIGS = {
    HFEagerSource: HFEagerConfig,
    HFIndexedSource: HFIndexedConfig,
    HFStreamingSource: HFStreamingConfig,
}
_WORDS = {HFEagerSource: "eager", HFIndexedSource: "by number", HFStreamingSource: "on demand"}
_LOOKED_AT = 64  # rows whose decoded size stands for all


def from_hf(
    name: str,
    split: str,
    *,
    streaming: bool | None = None,
    rngs: nnx.Rngs | None = None,
    **fields: Any,
) -> HFEagerSource | HFIndexedSource | HFStreamingSource:
    """Returns a Hugging Face split as a source: eager, by number, or on demand.

    It is eager if the decoded columns take at most 10 % of the device's memory (of the machine's,
    where the device does not say). If they take more, or nothing says how many rows there are, rows
    are read by number where the split lies on this machine, as local files or in the Hub's cache,
    and otherwise on demand. It logs which, and why.

    The estimate is made before anything is prepared: the first rows say how large a row is, the
    footers of local Parquet and Arrow files or the Hub's card how many there are; of local CSV,
    JSON and text the files' size counts.

    Args:
        name: A dataset of the Hub, a local folder or a packaged builder.
        split: A split, as `"train"`.
        streaming: True for on demand whatever the size; False for never on demand.
        rngs: Random streams that the source keeps.
        **fields: Any field of `HFEagerConfig`, `HFIndexedConfig` or `HFStreamingConfig`, such as
            `shuffle`.

    Returns:
        The source.

    Example:
        >>> source = from_hf("mnist", "train", shuffle=True)  # doctest: +SKIP
    """
    fields |= {"name": name, "split": split}
    kind, why = (_STREAM, "as asked for") if streaming else _choose(fields, streaming is None)
    logger.info("%s:%s is %s (%s): %s.", redacted(name), split, _WORDS[kind], kind.__name__, why)
    config = _config(kind, fields | {"streaming": kind is _STREAM})
    return kind(config, rngs=rngs)


def _choose(fields: dict[str, Any], may_stream: bool) -> tuple[type, str]:
    """Returns the kind of source, and why; where a stream will do, nothing is prepared."""
    may_stream = may_stream and "[" not in fields["split"]  # a stream has no slices
    config = _config(_STREAM, {**fields, "on_bad_rows": "skip"})
    found = patiently(
        lambda: load_split(
            config.name,
            config.split,
            config_name=config.config_name,
            data_dir=config.data_dir,
            streaming=may_stream,
            download_kwargs=config.download_kwargs,
            local_files_only=config.local_files_only,
            timeout=config.timeout,
            include=config.include_keys,
            exclude=config.exclude_keys,
        )
    )
    rows, size = found.size() if may_stream else (len(found.dataset), None)  # pyright: ignore
    if rows is not None:
        names = "include_keys", "exclude_keys", "transform", "num_threads"
        shown = {name: getattr(config, name) for name in names}
        size = rows * _row_bytes(HFStreamingSource.from_dataset(found.dataset, **shown))
    memory = _memory()
    if size is None:
        said = "its number of rows is unknown"
    else:
        counted = "" if rows is None else f"{rows} rows, "
        said = f"{counted}about {size / 1e9:.3g} GB, {size / memory:.2g} of the memory"
        draws = config.transform is not None and takes_rng(config.transform)
        if size <= _SHARE * memory and not draws:
            return HFEagerSource, said
        said += ", and its transform draws at random" * draws
    if not may_stream or found.here():
        return HFIndexedSource, f"{said}, and it lies on this machine"
    return _STREAM, said


def _config(kind: type, fields: dict[str, Any]) -> Any:
    """Returns a source's configuration; fields that only other kinds have are left out."""
    known = {f.name for f in dataclasses.fields(_CONFIGS[kind])}
    foreign = {f.name for config in _CONFIGS.values() for f in dataclasses.fields(config)} - known
    return _CONFIGS[kind](**{key: value for key, value in fields.items() if key not in foreign})


def _row_bytes(stream: HFStreamingSource) -> float:
    batch = stream.get_host_batch(_LOOKED_AT)
    stream.close()
    columns = jax.tree.leaves(batch)
    return sum(map(_bytes, columns)) / len(columns[0])


def _bytes(column: np.ndarray) -> int:
    if column.dtype != object:
        return column.nbytes
    return sum(getattr(item, "nbytes", None) or sys.getsizeof(item) for item in column)


def _memory() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit") or machine
