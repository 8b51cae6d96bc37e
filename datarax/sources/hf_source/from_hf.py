"""One function from a name to a source: eager where the data fits, on demand where it does not."""

import dataclasses
import os
import sys
from logging import getLogger
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.hub.load import load_split
from datarax.hub.network import patiently
from datarax.hub.secrets import redacted
from datarax.sources.hf_source.config import HFEagerConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.streaming import HFStreamingSource

logger = getLogger("datarax.sources.hf_source")

_SHARE = 0.1  # of the device's memory, which the model and its optimizer need too
_LOOKED_AT = 64  # rows whose decoded size stands for all


def from_hf(
    name: str,
    split: str,
    *,
    streaming: bool | None = None,
    rngs: nnx.Rngs | None = None,
    **fields: Any,
) -> HFEagerSource | HFStreamingSource:
    """Returns a Hugging Face split as a source, eager or on demand.

    Where `streaming` is None it is eager if the decoded columns take at most 10 % of the device's
    memory (of the machine's, where the device does not say). The estimate is made before anything
    is prepared: the first rows say how large a row is, the footers of local Parquet and Arrow files
    or the Hub's card how many there are; of local CSV, JSON and text the files' size counts. A
    split of unknown size is read on demand. It logs which, and why.

    Args:
        name: A dataset of the Hub, a local folder or a packaged builder.
        split: A split, as `"train"`.
        streaming: True for on demand, False for eager.
        rngs: Random streams that the source keeps.
        **fields: Any field of `HFEagerConfig` or `HFStreamingConfig`, such as `shuffle`.

    Returns:
        The source.

    Example:
        >>> source = from_hf("mnist", "train", shuffle=True)  # doctest: +SKIP
    """
    fields |= {"name": name, "split": split}
    streaming, why = _choose(fields) if streaming is None else (streaming, "as asked for")
    chosen = "on demand (HFStreamingSource)" if streaming else "eager (HFEagerSource)"
    logger.info("%s:%s is %s: %s.", redacted(name), split, chosen, why)
    if streaming:
        return HFStreamingSource(HFStreamingConfig(**fields, streaming=True), rngs=rngs)
    return HFEagerSource(_config(HFEagerConfig, fields), rngs=rngs)


def _choose(fields: dict[str, Any]) -> tuple[bool, str]:
    """Returns whether to stream, and why; nothing is prepared to find out."""
    if "[" in fields["split"]:
        return False, "a stream has no slices"
    config = _config(HFStreamingConfig, {**fields, "on_bad_rows": "skip"})
    found = patiently(
        lambda: load_split(
            config.name,
            config.split,
            config_name=config.config_name,
            data_dir=config.data_dir,
            streaming=True,
            download_kwargs=config.download_kwargs,
            local_files_only=config.local_files_only,
            timeout=config.timeout,
            include=config.include_keys,
            exclude=config.exclude_keys,
        )
    )
    rows, size = found.size()
    if rows is not None:
        keys = {"include_keys": config.include_keys, "exclude_keys": config.exclude_keys}
        size = rows * _row_bytes(HFStreamingSource.from_dataset(found.dataset, **keys))
    if size is None:
        return True, "its number of rows is unknown"
    memory = _memory()
    counted = "" if rows is None else f"{rows} rows, "
    share = f"{size / 1e9:.3g} GB, {size / memory:.2g} of the memory"
    return size > _SHARE * memory, f"{counted}about {share}"


def _config(kind: type, fields: dict[str, Any]) -> Any:
    """Returns a configuration of the fields; those that only the other kind has are left out."""
    known = {f.name for f in dataclasses.fields(kind)}
    other = HFStreamingConfig if kind is HFEagerConfig else HFEagerConfig
    foreign = {f.name for f in dataclasses.fields(other)} - known
    return kind(**{key: value for key, value in fields.items() if key not in foreign})


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
