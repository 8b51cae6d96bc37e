"""One split of a builder, or of a folder that `save_to_disk` wrote."""

import importlib.util
import itertools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from datarax.errors import closest, listed
from datarax.hub import parquet
from datarax.hub.private import xopen
from datarax.hub.secrets import redacted

logger = logging.getLogger(__name__)

# Arguments of `load_dataset` that its builder does not take.
_PREPARE = {"verification_mode", "num_proc"}
AFTER = _PREPARE | {"save_infos", "keep_in_memory"}
_BOTH = {"download_config", "download_mode", "storage_options"}
_UNPACKED_BY = {".zst": "zstandard", ".lz4": "lz4", ".7z": "py7zr", ".rar": "rarfile"}


def of_stream(builder: Any, name: str, split: str) -> datasets.IterableDataset:
    """Returns a split of a builder whose files are read on demand.

    Raises:
        ValueError: There is no such split, or it is a slice.
    """
    if _check_split(name, split, _splits(builder)):
        raise ValueError(
            f"A stream has no slice {split!r}: write split={split.partition('[')[0]!r}, or "
            "streaming=False."
        )
    _prepare_to_read(builder, name)
    for key, claimed in _lengths(builder).items():
        counted = parquet.num_rows(builder, key) if claimed else None
        if counted is not None and counted != claimed:
            _say(name, key, claimed, counted)
            builder.info.splits[key].num_examples = counted
    return _without_empty(builder, name, lambda: builder.as_streaming_dataset(split=split))


def is_prepared(builder: Any) -> bool:
    """Returns whether the disk holds a builder's rows."""
    return Path(builder.cache_dir, "dataset_info.json").is_file()


def of_builder(builder: Any, name: str, split: str, kwargs: Mapping[str, Any]) -> datasets.Dataset:
    """Returns a split of a builder, prepared on this machine's disk.

    Args:
        builder: The builder.
        name: The dataset's name, for errors.
        split: A split, a slice or a sum.
        kwargs: Keyword arguments of `datasets.load_dataset`.

    Raises:
        ValueError: There is no such split or slice, or it is empty.
    """
    _check_split(name, split, _splits(builder))
    claimed = {} if is_prepared(builder) else _lengths(builder)
    prepare = {key: value for key, value in kwargs.items() if key in _PREPARE | _BOTH}
    # A card's number of rows is often out of date: it is compared below, and said.
    prepare.setdefault("verification_mode", "no_checks")
    if kwargs.get("save_infos"):
        prepare["verification_mode"] = "all_checks"
    if not is_prepared(builder) or kwargs.get("download_mode"):
        _prepare_to_read(builder, name)
        _without_empty(builder, name, lambda: _prepared(builder, prepare))
    lengths = _lengths(builder)
    for key, count in claimed.items():
        if count and lengths.get(key) != count:
            _say(name, key, count, lengths.get(key, 0))
    _check_rows(name, split, lengths)
    return builder.as_dataset(split=split, in_memory=bool(kwargs.get("keep_in_memory")))


def _prepared(builder: Any, options: dict[str, Any]) -> None:
    try:
        builder.download_and_prepare(**options)
    except DatasetGenerationError as error:
        if not parquet.has_no_batch_size(error):
            raise
        builder.config.batch_size = parquet.ROWS
        builder.download_and_prepare(**options)


def _say(name: str, split: str, claimed: int, counted: int) -> None:
    said = "The card of %r says that split %r has %d rows; its files hold %d, which are read."
    logger.warning(said, redacted(name), split, claimed, counted)


def _prepare_to_read(builder: Any, name: str) -> None:
    given = getattr(builder.config, "data_files", None)
    files = given or {}
    if given is not None and not any(files.values()):
        raise FileNotFoundError(f"{name!r}: no file is where data_files says. Mend its path.")
    for file in itertools.chain.from_iterable(files.values()):
        package = _UNPACKED_BY.get(os.path.splitext(file)[1].lower())
        if package and importlib.util.find_spec(package) is None:
            raise ImportError(f"Reading {redacted(file)} needs a package: pip install {package}")
    parquet.allow_empty(builder)
    if getattr(builder.config, "field", None) and builder.info.features is None:
        builder.info.features = _of_json(next(iter(files.values()))[0], builder.config.field)


def _of_json(file: str, field: str) -> datasets.Features:
    """Returns the features of the rows in a field of a JSON file; pandas makes integers of 1.0."""
    with xopen(file, "rb") as stream:
        rows = json.load(stream)[field]
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else pa.table(rows)
    return datasets.Features.from_arrow_schema(table.schema)


def _without_empty(builder: Any, name: str, read: Any) -> Any:
    """Calls `read`, again without the empty files where the first files of a split are empty."""
    try:
        return read()
    except StopIteration:  # `datasets` looks at the first rows of the first split
        files = builder.config.data_files
        for key in list(files):
            files[key][:] = [file for file in files[key] if not _is_empty(file)]
            if not files[key]:
                del files[key]
        if not files:
            raise ValueError(f"{name!r} is empty: there are no rows in any of its files.") from None
    try:
        return read()
    except StopIteration:
        raise ValueError(f"{name!r}: the files of a split hold no rows. Remove them.") from None


def _is_empty(file: str) -> bool:
    return os.path.isfile(file) and not os.path.getsize(file)


def is_saved(place: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder."""
    return (place / "state.json").is_file() or (place / "dataset_dict.json").is_file()


def of_saved(place: Path, split: str, kwargs: Mapping[str, Any]) -> datasets.Dataset:
    """Returns a split of a folder that `save_to_disk` wrote; for the arguments see `of_builder`."""
    saved: Any = datasets.load_from_disk(
        str(place),
        keep_in_memory=kwargs.get("keep_in_memory"),
        storage_options=kwargs.get("storage_options"),
    )
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or split.partition("[")[0]): saved}
    lengths = {str(key): len(rows) for key, rows in saved.items()}
    if split in lengths:  # its name may have hyphens and brackets, which are those of slices
        return saved[split]
    _check_split(str(place), split, list(lengths))
    slices = _check_rows(str(place), split, lengths)
    parts = [saved[at.splitname].select(range(at.from_, at.to)) for at in slices]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _splits(builder: Any) -> list[str]:
    known = getattr(builder.config, "data_files", None) or builder.info.splits or ()
    return [str(key) for key in known]


def _lengths(builder: Any) -> dict[str, int]:
    return {key: known.num_examples for key, known in (builder.info.splits or {}).items()}


def _check_rows(name: str, split: str, lengths: Mapping[str, int]) -> list[Any]:
    """Returns the slices of a split; raises `ValueError` where a slice is none or all are empty."""
    there = ", ".join(f"{key!r} has {length} rows" for key, length in lengths.items())
    line = 'Write such as split="train[:10%]" or split="train[100:200]".' * ("[" in split)
    try:
        spec = "+".join(lengths) if split == "all" else split
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{name!r} has no slice {split!r} ({error}): {there}. {line}") from error
    if not any(part.to > part.from_ for part in parts):
        kind = "slice" if "[" in split else "split"
        raise ValueError(f"The {kind} {split!r} of {name!r} is empty: {there}. {line}".rstrip())
    return parts


def _check_split(name: str, split: str, known: list[str]) -> bool:
    """Returns whether a split is a slice; raises `ValueError` if there is no such split."""
    if split in known:
        return False
    for part in split.split("+"):
        wanted = part.partition("[")[0].strip()
        if known and wanted not in (*known, "all"):
            near = closest(wanted, known) or f" Write split={known[0]!r}."
            raise ValueError(f"{name!r} has no split {wanted!r}. There are {listed(known)}.{near}")
    return "[" in split
