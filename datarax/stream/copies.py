"""Copies of a `datasets.IterableDataset` to read: they decode no file and cast no row away.

Private names of `datasets.iterable_dataset` are in this file and in `datarax.stream.steps`.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.iterable_dataset import (
    ArrowExamplesIterable,
    FilteredExamplesIterable,
    FormattedExamplesIterable,
    MappedExamplesIterable,
    SelectColumnsIterable,
    _apply_async,
)

from datarax.hub import parquet
from datarax.hub.private import require_decoding
from datarax.stream.encoder import MISFITS, fitted
from datarax.stream.pictures import opened
from datarax.stream.shards import UsersError
from datarax.stream.sounds import Sound
from datarax.stream.steps import Step, gives_tables

File = datasets.Image | datasets.Audio


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

    It reads Parquet files, too, whose first row group has no rows.

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

    def read(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, pa.Table]]:
        method, found = MethodType(function.__func__, builder), False
        try:
            for item in method(*args, **kwargs):
                found = True
                yield item
        except pa.ArrowInvalid as error:
            if found or not parquet.has_no_batch_size(error):
                raise
            builder.config = copy.copy(builder.config)
            builder.config.batch_size = parquet.ROWS
            yield from method(*args, **kwargs)

    builder._cast_table = attempt
    return read


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
        if not _is_decode(step):
            step.function = _users(step.function)
        elif _opens_all(step.features):
            step.function = _Opener(_files(step.features), {})
    if type(step) is FormattedExamplesIterable and _decodes(step):
        return _Undecoded(step, datasets.Features(step.features or {}))
    return step


def _is_decode(step: MappedExamplesIterable) -> bool:
    """Returns whether a step is `dataset.decode(num_threads=...)`, which decodes on threads."""
    # By its function: `step.decoding_pool` is lost where the files are dealt to shards.
    return isinstance(step.function, partial) and step.function.func is _apply_async


def _decodes(step: FormattedExamplesIterable) -> bool:
    """Returns whether a step decodes pictures or sounds for a function that takes them decoded."""
    tensors = step.formatting and step.formatting.is_tensor
    return bool(step.features and _files(step.features)) and not (
        tensors or step.ex_iterable.is_typed
    )


def _opens_all(features: datasets.Features | None) -> bool:
    features = features or datasets.Features()
    return set(_files(features)) == {n for n, f in features.items() if require_decoding(f)}


class _Undecoded(FormattedExamplesIterable):
    """The step that decodes rows for a function: it opens files, and decodes what it must."""

    def __init__(self, step: FormattedExamplesIterable, features: datasets.Features):
        files = _files(features)
        raw = {name: dataclasses.replace(file, decode=False) for name, file in files.items()}
        super().__init__(
            step.ex_iterable,
            step.formatting,
            datasets.Features({**features, **raw}),
            step.token_per_repo_id,
            step.force_convert_to_python,
        )
        self._declared = features
        self._open = _Opener(files, step.token_per_repo_id)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for key, example in super().__iter__():
            yield key, self._open(example)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Undecoded":
        return _Undecoded(super().shuffle_data_sources(generator), self._declared)


class _Opener:
    """Opens the pictures and sounds of a row."""

    def __init__(self, files: dict[str, File], tokens: dict[str, Any]):
        self._files, self._tokens = files, tokens

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        found = {
            name: self._opened(feature, example[name])
            for name, feature in self._files.items()
            if isinstance(example.get(name), dict)
        }
        return {**example, **found}

    def _opened(self, feature: File, stored: dict[str, Any]) -> Any:
        if isinstance(feature, datasets.Audio):
            return Sound(feature, stored, self._tokens)
        return opened(feature, stored, self._tokens)


def _files(features: datasets.Features | None) -> dict[str, File]:
    kinds = datasets.Image, datasets.Audio
    return {n: f for n, f in (features or {}).items() if isinstance(f, kinds) and f.decode}


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


def column_names(dataset: datasets.IterableDataset) -> list[str]:
    """Returns the names of a dataset's columns, those of the first rows where none are declared."""
    if dataset.features is not None:
        return list(dataset.features)
    if gives_tables(dataset):
        return list(dataset.with_format(None)._head())
    try:
        return list(next(Examples(copied(dataset, 0, as_tables=False, features=None), None)))
    except UsersError as error:
        raise error.error from error.error.__cause__
