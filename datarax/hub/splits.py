"""One split of a builder, or of a folder that `save_to_disk` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from datarax.errors import closest, listed

# Arguments of `load_dataset` that its builder does not take.
_PREPARE = {"verification_mode", "num_proc"}
AFTER = _PREPARE | {"save_infos", "keep_in_memory"}
_BOTH = {"download_config", "download_mode", "storage_options"}


def of_builder(
    builder: datasets.DatasetBuilder,
    name: str,
    split: str,
    streaming: bool,
    kwargs: Mapping[str, Any],
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns a split of a builder, prepared on this machine's disk unless it is a stream.

    Args:
        builder: The builder.
        name: The dataset's name, for errors.
        split: A split, a slice or a sum.
        streaming: Whether to read rows on demand.
        kwargs: Keyword arguments of `datasets.load_dataset`.

    Raises:
        ValueError: There is no such split or slice, or the slice is empty.
    """
    known = getattr(builder.config, "data_files", None) or builder.info.splits or ()
    _check_split(name, split, [str(key) for key in known])
    if streaming:
        if "[" in split:
            raise ValueError(
                f"A stream has no slice {split!r}: write split={split.partition('[')[0]!r}, or "
                "streaming=False."
            )
        return builder.as_streaming_dataset(split=split)
    prepare = {key: value for key, value in kwargs.items() if key in _PREPARE | _BOTH}
    if kwargs.get("save_infos"):
        prepare["verification_mode"] = "all_checks"
    builder.download_and_prepare(**prepare)
    lengths = {key: known.num_examples for key, known in (builder.info.splits or {}).items()}
    _check_slice(name, split, lengths)
    return builder.as_dataset(split=split, in_memory=bool(kwargs.get("keep_in_memory")))


def is_saved(place: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder."""
    return (place / "state.json").is_file() or (place / "dataset_dict.json").is_file()


def of_saved(
    place: Path, split: str, streaming: bool, kwargs: Mapping[str, Any]
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns a split of a folder that `save_to_disk` wrote; for the arguments see `of_builder`."""
    options = {key: kwargs.get(key) for key in ("keep_in_memory", "storage_options")}
    saved = datasets.load_from_disk(str(place), **options)
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or split.partition("[")[0]): saved}
    _check_split(str(place), split, list(saved))
    lengths = {key: len(rows) for key, rows in saved.items()}
    _check_slice(str(place), split, lengths)
    spec = "+".join(saved) if split == "all" else split
    slices = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    parts = [saved[at.splitname].select(range(at.from_, at.to)) for at in slices]
    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return rows.to_iterable_dataset() if streaming else rows


def _check_slice(name: str, split: str, lengths: Mapping[str, int]) -> None:
    """Raises where a slice is none or is empty; loading the columns tells of a whole split."""
    if "[" not in split:
        return
    there = ", ".join(f"{key!r} has {length} rows" for key, length in lengths.items())
    line = 'Write such as split="train[:10%]" or split="train[100:200]".'
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{name!r} has no slice {split!r} ({error}): {there}. {line}") from error
    if not any(part.to > part.from_ for part in parts):
        raise ValueError(f"The slice {split!r} of {name!r} is empty: {there}. {line}")


def _check_split(name: str, split: str, known: list[str]) -> None:
    for part in split.split("+"):
        wanted = part.partition("[")[0].strip()
        if known and wanted not in (*known, "all"):
            near = closest(wanted, known) or f" Write split={known[0]!r}."
            raise ValueError(f"{name!r} has no split {wanted!r}. There are {listed(known)}.{near}")
