"""How large a split is, by its files, before any of it is prepared."""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from datarax.hub import parquet

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
_UNPACKED = 4  # times as many bytes, about, as a packed file of text has
_FILE_A_ROW = ("imagefolder", "audiofolder", "videofolder")


class Size(NamedTuple):
    """The size of a split, as far as it is known.

    Args:
        rows: The number of rows, or None.
        bytes: The bytes of its files as text, where nothing counts their rows; or None.
    """

    rows: int | None = None
    bytes: int | None = None


def size_of(builder: Any, split: str) -> Size:
    """Returns the size of a builder's split: by the files on this machine, else by the card.

    Footers count the rows of Parquet and Arrow files, and each file of a folder of images is a row.
    CSV, JSON and text say only their bytes. The answer is the same before and after preparing.

    Args:
        builder: The builder.
        split: A split or a sum of splits, without slices.
    """
    known = getattr(builder.config, "data_files", None) or {}
    counts = builder.info.splits or {}
    keys = list(known or counts) if split == "all" else [part.strip() for part in split.split("+")]
    files = [str(file) for key in keys for file in known.get(key, ())]
    if not files or not all(map(os.path.isfile, files)):
        return _sum(counts[key].num_examples if key in counts else None for key in keys)
    if builder.name == "parquet":
        return _sum(parquet.num_rows(builder, key) for key in keys)
    if builder.name == "arrow":
        return Size(sum(map(_arrow_rows, files)))
    if builder.name in _FILE_A_ROW:
        return Size(sum(not os.path.basename(file).startswith("metadata.") for file in files))
    packed = (_UNPACKED if file.endswith(_PACKED) else 1 for file in files)
    return Size(
        bytes=sum(os.path.getsize(file) * times for file, times in zip(files, packed, strict=True))
    )


def files_are_here(builder: Any) -> bool:
    """Returns whether all files that a builder reads are on this machine."""
    known = getattr(builder.config, "data_files", None) or {}
    files = [str(file) for some in known.values() for file in some]
    return bool(files) and all(map(os.path.isfile, files))


def _sum(rows: Iterable[int | None]) -> Size:
    known = list(rows)
    return Size(sum(filter(None, known)) if all(known) else None)


def _arrow_rows(file: str) -> int:
    with pa.memory_map(file) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        return sum(batch.num_rows for batch in reader)
