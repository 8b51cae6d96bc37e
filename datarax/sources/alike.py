"""The records of sources that are mixed: the same columns, and the same classes by one number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets

from datarax.sources.source import Source


def expect_alike(sources: Sequence[Any]) -> None:
    """Raises unless all are sources whose records are of one kind.

    Raises:
        TypeError: If something is no source.
        ValueError: If the columns or the names of their classes differ.
    """
    for source in sources:
        if not isinstance(source, Source):
            raise TypeError(
                f"{type(source).__name__} is no source: expected HFEagerSource, HFStreamingSource "
                "or MemorySource."
            )
    first, names = sources[0].element_spec(), dict(_class_names(sources[0].features))
    for number, source in enumerate(sources[1:], 1):
        if (other := source.element_spec()) != first:
            raise ValueError(
                f"The records of source 0 are {first}, those of source {number} {other}: give all "
                "the same columns, with include_keys={...} or ds.map(...)."
            )
        for column, given in _class_names(source.features):
            if given != names.get(column, given):
                raise ValueError(
                    f"The classes of column {column!r} are {names[column]} in source 0, and {given}"
                    f" in source {number}: one number would mean two classes. Give all the same "
                    "names in the same order, with ds.cast_column(...) or ds.align_labels_with_"
                    "mapping(...)."
                )


def _class_names(feature: Any, column: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields the columns of class numbers among features, nested ones too, and their names."""
    if isinstance(feature, datasets.ClassLabel):
        yield column, feature.names
    elif isinstance(feature, Mapping):
        for name, inner in feature.items():
            yield from _class_names(inner, f"{column}.{name}" if column else name)
    elif isinstance(feature, list):
        yield from _class_names(feature[0], column)
    elif isinstance(feature, (datasets.List, datasets.LargeList)):
        yield from _class_names(feature.feature, column)
