"""The steps of a `datasets.IterableDataset`: what each is, and copies that decode no picture.

`datasets` calls them examples iterables; each holds the one before it. Their names are private, and
`tests/datarax/stream/test_steps.py` says of each that it is still there and still means the same.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
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

from datarax.hub.private import require_decoding
from datarax.stream.encoder import MISFITS, fitted
from datarax.stream.pictures import opened
from datarax.stream.shards import UsersError

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


def column_names(dataset: datasets.IterableDataset) -> list[str]:
    """Returns the names of a dataset's columns, those of the first rows where none are declared."""
    if dataset.features is not None:
        return list(dataset.features)
    return list(dataset.with_format(None)._head())


def copied(
    dataset: datasets.IterableDataset,
    epoch: int,
    *,
    as_tables: bool,
    features: datasets.Features | None,
) -> datasets.IterableDataset:
    """Returns a dataset that is read on its own: steps keep their position in themselves.

    Its rows come as the last step gives them. `datasets` itself would stop at a table that does not
    fit the features, and encode and decode each row of Python by them.

    Args:
        dataset: The dataset.
        epoch: Which order of `shuffle`.
        as_tables: Whether its rows come as tables.
        features: The features that tables are cast to, as far as they fit; None to cast none.
    """
    last = _copied(dataset._ex_iterable)
    info = dataset.info.copy()
    info.features = None
    # Not copy.copy(dataset), which would share the fields of the dataset.
    copied = datasets.IterableDataset(
        ex_iterable=last if features is None or not as_tables else _Fitted(last, features),
        info=info,
        formatting=dataset._formatting if as_tables else None,
        distributed=dataset._distributed,
        token_per_repo_id=dataset._token_per_repo_id,
    )
    copied.set_epoch(epoch)
    return copied


def _as_read(function: Callable) -> Callable:
    """Returns a builder's method that gives a table as it was read where it fits no features.

    Builders cast each table before anybody sees it. What they raise names no row, and takes the
    rest of the file with it.
    """
    if not (inspect.ismethod(function) and "_cast_table" in dir(function.__self__)):
        return function
    builder: Any = copy.copy(function.__self__)
    cast = builder._cast_table

    def attempt(table: pa.Table, *args: Any, **kwargs: Any) -> pa.Table:
        try:
            return cast(table, *args, **kwargs)
        except MISFITS:
            return table

    builder._cast_table = attempt
    return MethodType(function.__func__, builder)


class _Fitted(SelectColumnsIterable):
    """A step that casts tables; its state is that of the step before."""

    def __init__(self, step: Step, features: datasets.Features):
        super().__init__(step, list(features))
        self._wanted = features

    def _iter_arrow(self) -> Iterator[tuple[Any, pa.Table]]:
        tables: Any = self.ex_iterable.iter_arrow
        for key, table in tables():
            yield key, fitted(table, self._wanted) if len(table) else table

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Fitted":
        return _Fitted(self.ex_iterable.shuffle_data_sources(generator), self._wanted)


def _copied(step: Step) -> Step:
    step = copy.copy(step)
    if "ex_iterable" in vars(step):
        step.ex_iterable = _copied(step.ex_iterable)
    if "ex_iterables" in vars(step):
        step.ex_iterables = [_copied(inner) for inner in step.ex_iterables]
    if type(step) is ArrowExamplesIterable:
        step.generate_tables_fn = _as_read(step.generate_tables_fn)
    if isinstance(step, MappedExamplesIterable):
        if isinstance(step, FilteredExamplesIterable):  # from which `shuffle` makes the other
            step.mask_function = _users(step.mask_function)
        if step.decoding_pool is None:
            step.function = _users(step.function)
        elif _opens_all(step.features):  # dataset.decode(num_threads=...) decodes on threads
            step.function = _Opener(_pictures(step.features), {})
    if type(step) is FormattedExamplesIterable and _decodes(step):
        return _Undecoded(step, datasets.Features(step.features or {}))
    return step


def _decodes(step: FormattedExamplesIterable) -> bool:
    """Returns whether a step decodes pictures for a function that takes them as Pillow images."""
    tensors = step.formatting and step.formatting.is_tensor
    return bool(step.features and _pictures(step.features)) and not (
        tensors or step.ex_iterable.is_typed
    )


def _opens_all(features: datasets.Features | None) -> bool:
    features = features or datasets.Features()
    return set(_pictures(features)) == {n for n, f in features.items() if require_decoding(f)}


class _Undecoded(FormattedExamplesIterable):
    """The step that decodes rows for a function: it opens pictures, and decodes what it must."""

    def __init__(self, step: FormattedExamplesIterable, features: datasets.Features):
        pictures = _pictures(features)
        raw = {name: datasets.Image(mode=f.mode, decode=False) for name, f in pictures.items()}
        super().__init__(
            step.ex_iterable,
            step.formatting,
            datasets.Features({**features, **raw}),
            step.token_per_repo_id,
            step.force_convert_to_python,
        )
        self._declared = features
        self._open = _Opener(pictures, step.token_per_repo_id)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for key, example in super().__iter__():
            yield key, self._open(example)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Undecoded":
        return _Undecoded(super().shuffle_data_sources(generator), self._declared)


class _Opener:
    """Opens the pictures of a row."""

    def __init__(self, pictures: dict[str, datasets.Image], tokens: dict[str, Any]):
        self._pictures, self._tokens = pictures, tokens

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        found = {
            name: opened(feature, example[name], self._tokens)
            for name, feature in self._pictures.items()
            if isinstance(example.get(name), dict)
        }
        return {**example, **found}


def _pictures(features: datasets.Features | None) -> dict[str, datasets.Image]:
    return {n: f for n, f in (features or {}).items() if isinstance(f, datasets.Image) and f.decode}


def _users(function: Callable) -> Callable:
    """Returns a function of the user's whose errors are told from those of reading."""

    async def wait(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except Exception as error:
            raise UsersError(error) from error

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise UsersError(error) from error

    # `datasets` asks a partial, too: `filter` gives it one.
    return wait if inspect.iscoroutinefunction(function) else call


class Examples:
    """Rows of a copied dataset, as its last step gives them, from an exact position.

    Args:
        dataset: What `copied` returned.
        state: What `state` returned; None: the start.
    """

    def __init__(self, dataset: datasets.IterableDataset, state: dict[str, Any] | None):
        self._step = dataset._prepare_ex_iterable_for_iteration()
        if state is not None:
            self._step.load_state_dict(state)
        self._rows = iter(self._step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)[1]

    def state(self) -> dict[str, Any]:
        """Returns the position after the last row, JSON-able."""
        return self._step.state_dict()
