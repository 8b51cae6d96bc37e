"""The fingerprint of data: of its content, so that the same data are known anywhere again."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import jax
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import ArrowCells, as_python, nulls, plain, read, rows_of, without_views
from datarax.columns.host import HostColumn
from datarax.columns.lists import flatten, is_binary, is_list, is_number, is_text, list_lengths
from datarax.hub.private import is_local_path, table_of, xopen

_ROWS = 1024
_AT_ONCE = 128  # rows that are read before memory is looked at
_ALIKE = {"large_string": "string", "string_view": "string", "large_binary": "binary",
          "binary_view": "binary", "LargeList": "List"}  # fmt: skip


def fingerprint_dataset(
    dataset: datasets.Dataset, columns: Iterable[str], after: Callable[[], None] = lambda: None
) -> str:
    """Returns a fingerprint of some columns, without decoding anything.

    It depends on the features, the length and the content of up to 1,024 rows at fixed positions;
    of images and other files the bytes count, wherever they are. Chunks, the width of Arrow's
    offsets, index mappings, paths, times of change and `Dataset._fingerprint` have no influence.

    Args:
        dataset: Any dataset.
        columns: The names of the columns that count, in any order.
        after: Called each time that some rows of mapped files have been looked at.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> ds = datasets.Dataset.from_dict({"x": [1, 2, 3]})
        >>> fingerprint_dataset(ds, ["x"]) == fingerprint_dataset(ds.select([0, 1, 2]), ["x"])
        True
    """
    names, rows = sorted(columns), rows_of(dataset)
    table = without_views(table_of(dataset).select(names))
    features = dataset.features  # a deep copy, whenever it is asked for
    digest = Digest("dataset", rows.length)
    for name in names:
        feature = datasets.Features({name: features[name]})
        digest.note(_alike(feature.to_dict()))
        parts, spots = [], _spots(rows.length)
        for start in range(0, len(spots), _AT_ONCE):
            parts.append(read(table.column(name), rows.take(spots[start : start + _AT_ONCE])))
            after()
        digest.arrow(pa.concat_arrays(parts))
    return digest.hex()


def fingerprint_arrays(data: dict[str, Any]) -> str:
    """Returns a fingerprint of columns in memory, as `fingerprint_dataset` does of stored ones.

    Args:
        data: Arrays of shape `(n, ...)` on host or device, host columns, and dicts of them.

    Returns:
        32 hexadecimal digits. They are not those of the dataset that the arrays come from.

    Example:
        >>> fingerprint_arrays({"x": np.arange(3)}) == fingerprint_arrays({"x": np.ones(3)})
        False
    """
    digest = Digest("arrays")
    for path, column in _columns(data, ()):
        digest.note(path, tuple(column.shape), column.dtype.name)
        spots = _spots(len(column))
        if isinstance(column, HostColumn) and isinstance(column.cells, ArrowCells):
            digest.arrow(read(column.cells.column, column.cells.rows.take(spots)))
        elif column.dtype == object:
            digest.note(*map(_described, np.asarray(column[spots])))
        else:
            # As bytes, since a buffer of bfloat16 has no format.
            digest.bytes(np.ascontiguousarray(column[spots]).reshape(-1).view(np.uint8))
    return digest.hex()


class Digest:
    """A hash of notes and Arrow values that does not depend on how Arrow lays the values out.

    Args:
        notes: Where it begins: any values whose `repr` says what they are.
    """

    def __init__(self, *notes: Any):
        self._hash = hashlib.sha256()
        self.note(*notes)

    def hex(self) -> str:
        """Returns 32 hexadecimal digits."""
        return self._hash.hexdigest()[:32]

    def note(self, *notes: Any) -> None:
        """Adds values by their `repr`."""
        self.bytes(repr(notes).encode())

    def bytes(self, data: Any) -> None:
        """Adds a buffer."""
        view = memoryview(data).cast("B") if len(data) else b""
        self._hash.update(len(view).to_bytes(8, "little"))
        self._hash.update(view)

    def arrow(self, array: pa.Array) -> None:
        """Adds Arrow values; a file counts by its bytes, even where only its path is stored."""
        array = plain(array)
        self.bytes(np.packbits(nulls(array)))
        array = array.drop_null()
        if is_list(array.type):
            self.bytes(list_lengths(array).astype(np.int64))
            self.arrow(flatten(array))
        elif pa.types.is_struct(array.type):
            self._struct(array)
        elif is_number(array.type):
            self.bytes(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))
        elif is_text(array.type) or is_binary(array.type):
            array = array.cast(pa.large_binary())
            ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1]
            self.bytes(np.diff(ends))
            self.bytes(array.buffers()[2][ends[0] : ends[-1]] if len(array) else b"")
        else:
            self.note([as_python(value) for value in array])

    def _struct(self, array: pa.StructArray) -> None:
        parts = {field.name: array.field(index) for index, field in enumerate(array.type)}
        if parts.keys() == {"bytes", "path"}:  # how `datasets` stores images and other files
            stored = parts["bytes"]
            missing = np.flatnonzero(nulls(stored))
            self.arrow(stored if not len(missing) else _with_files(stored, parts["path"]))
            return
        for name in sorted(parts):
            self.note(name)
            self.arrow(parts[name])


def fingerprint_rows(read_rows: Callable[[np.ndarray], dict[str, Any]], length: int) -> str:
    """Returns what `fingerprint_arrays` does of columns that are read by rows.

    Args:
        read_rows: Returns rows of the columns, by their numbers.
        length: Number of rows.
    """
    rows = read_rows(_spots(length))
    return fingerprint_arrays(jax.tree.map(lambda column: _Spots(column, length), rows))


class _Spots:
    """A column of which only the rows that count are at hand."""

    def __init__(self, column: np.ndarray, length: int):
        self._column, self._length = column, length
        self.shape, self.dtype = (length, *column.shape[1:]), column.dtype

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, spots: np.ndarray) -> np.ndarray:
        return self._column


def _with_files(stored: pa.Array, paths: pa.Array) -> pa.Array:
    pairs = zip(stored.to_pylist(), paths.to_pylist(), strict=True)
    found = [_file(path) if data is None and path else data for data, path in pairs]
    return pa.array(found, pa.large_binary())


def _file(path: str) -> bytes | None:
    try:
        with open(path, "rb") if is_local_path(path) else xopen(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None  # loading the column names it


def _alike(feature: Any) -> Any:
    """Returns a feature's dict without what only says how wide Arrow's offsets are."""
    if isinstance(feature, dict):
        return {key: _alike(value) for key, value in sorted(feature.items())}
    if isinstance(feature, (list, tuple)):
        return [_alike(value) for value in feature]
    return _ALIKE.get(feature, feature) if isinstance(feature, str) else feature


def _spots(length: int) -> np.ndarray:
    """Returns the rows that count: up to 1,024, evenly spread from the first to the last."""
    count = min(length, _ROWS)
    return np.arange(count) * (length - 1) // max(count - 1, 1)


def _columns(data: dict[str, Any], parents: tuple[str, ...]) -> Iterator[tuple[tuple, Any]]:
    for name in sorted(data):
        if isinstance(data[name], dict):
            yield from _columns(data[name], (*parents, name))
        else:
            yield (*parents, name), data[name]


def _described(item: Any) -> Any:
    """Returns what stands for an object: an array's own `repr` leaves out its middle."""
    if isinstance(item, np.ndarray):
        return item.shape, item.dtype.name, hashlib.sha256(item.tobytes()).hexdigest()
    return item
