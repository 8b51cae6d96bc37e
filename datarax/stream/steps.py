"""The steps of a `datasets.IterableDataset`, and what each is.

`datasets` calls them examples iterables; each holds the one before it. Their names are private, and
`tests/datarax/stream/test_steps.py` says of each that it is still there and still means the same.
"""

from typing import Any

import datasets
from datasets.iterable_dataset import (
    ArrowExamplesIterable,
    BufferShuffledExamplesIterable,
    ExamplesIterable,
    FilteredExamplesIterable,
    FormattedExamplesIterable,
    MappedExamplesIterable,
    RebatchedArrowExamplesIterable,
    SelectColumnsIterable,
)

Step = Any  # a `datasets.iterable_dataset._BaseExamplesIterable`

# Steps that give the same rows file by file, in the order of the files.
_BY_FILE = {
    ArrowExamplesIterable,
    ExamplesIterable,
    FilteredExamplesIterable,
    FormattedExamplesIterable,
    MappedExamplesIterable,
    RebatchedArrowExamplesIterable,
    SelectColumnsIterable,
}

# What a user wrote to get a step that looks across the borders of files.
_ACROSS = {
    "BufferShuffledExamplesIterable": "shuffle",
    "CyclingMultiSourcesExamplesIterable": "interleave_datasets",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable": "concatenate_datasets",
    "InterleavedShardsExamplesIterable": "shuffle",
    "MappedExamplesIterable": "batched map",
    "RandomlyCyclingMultiSourcesExamplesIterable": "interleave_datasets",
    "RepeatExamplesIterable": "repeat",
    "SkipExamplesIterable": "skip",
    "StepExamplesIterable": "split_dataset_by_node",
    "TakeExamplesIterable": "take",
    "VerticallyConcatenatedMultiSourcesExamplesIterable": "concatenate_datasets",
}


def chain(dataset: datasets.IterableDataset) -> list[Step]:
    """Returns a dataset's last step and all those before it, the sources last."""
    return _chain(dataset._ex_iterable)


def _chain(step: Step) -> list[Step]:
    return [step, *(inner for before in _before(step) for inner in _chain(before))]


def _before(step: Step) -> list[Step]:
    held = vars(step)
    return held.get("ex_iterables") or [held[key] for key in ("ex_iterable",) if key in held]


def gives_tables(dataset: datasets.IterableDataset) -> bool:
    """Returns whether the rows come as Arrow tables, and not one by one from Python."""
    return bool(dataset._ex_iterable.iter_arrow)


def why_whole(steps: list[Step], reorders: bool) -> str:
    """Returns why a dataset cannot be read file by file, and what to do; empty if it can.

    Args:
        steps: All steps.
        reorders: Whether a batched `map` may get its batches file by file.
    """
    for step in steps:
        batched = type(step) is MappedExamplesIterable and step.batched
        if type(step) in _BY_FILE and (reorders or not batched):
            continue
        name = type(step).__name__
        if is_shuffle(step):
            return "the dataset's step `shuffle` mixes its files; write shuffle=True instead"
        if name in _ACROSS:
            return f"the dataset's step `{_ACROSS[name]}` reads across its files"
        return f"the step {name} of datasets {datasets.__version__} is not known here"
    return ""


def is_inexact(step: Step) -> bool:
    """Returns whether `datasets` says of a step that it resumes elsewhere than it stopped."""
    mapped = isinstance(step, MappedExamplesIterable)
    return is_shuffle(step) or bool(mapped and step.formatting and step.formatting.is_table)


def is_shuffle(step: Step) -> bool:
    """Returns whether a step is `shuffle`, whose order `set_epoch` changes."""
    return isinstance(step, BufferShuffledExamplesIterable)


def known_features(steps: list[Step]) -> datasets.Features | None:
    """Returns the features of the last step that has any: what the rows were before a `map`."""
    return next((step.features for step in steps if step.features is not None), None)


def files(source: Step) -> list[str] | None:
    """Returns the file of each shard, with its row group, where the shards are files."""
    kwargs = vars(source).get("kwargs", {})
    found = next((kwargs[key] for key in ("files", "filepaths", "base_files") if key in kwargs), ())
    groups = kwargs.get("row_groups_list") or [None] * len(found)
    if not found or not all(isinstance(file, str) for file in found):
        return None
    return [
        file if group is None else f"{file} (row group {', '.join(map(str, group))})"
        for file, group in zip(found, groups, strict=False)
    ]
