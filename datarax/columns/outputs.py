"""The columns that a transform makes: their shapes, dtypes and features, as of the first record."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import jax
import numpy as np
import PIL.Image

from datarax.columns.host import HostColumn
from datarax.columns.labels import class_label, said_of
from datarax.columns.nested import Path, nested
from datarax.columns.numbers import array_dtype
from datarax.columns.output_features import (
    device_dtype,
    feature_at,
    is_same,
    made_feature,
    stored_dtype,
)
from datarax.errors import listed

logger = logging.getLogger(__name__)

OBJECT = np.dtype(object)
_NUMBERS = "biufcV"  # the kinds of dtypes that JAX has arrays of; V is bfloat16
_PYTHONS = bool, int, float, complex, list, tuple


class Unlike(ValueError):
    """A record that differs from the first one: never a bad row, since it can be read."""


@dataclass(frozen=True, eq=False)
class Output:
    """A column that a transform makes.

    Args:
        path: Its name, and the names within it if it is nested.
        shape: The shape of one record.
        dtype: The dtype of the column; `object` of a host column.
        given: The dtype that the transform returns.
        feature: Its feature; None where no feature says what it holds.
        kept: Whether the transform returns it as it is given it.
        shown: What an error shows of the first record.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    given: np.dtype
    feature: Any
    kept: bool
    shown: str

    @property
    def name(self) -> str:
        """The name that errors use: `"answers.text"`."""
        return ".".join(self.path)


class Outputs:
    """The columns that a transform makes.

    Args:
        name: What errors call the transform.
        features: The features of the records.
        shown: Records, and what the transform makes of them, by path. The first one decides the
            shapes; a column that is the record's own in all of them keeps its feature.
    """

    def __init__(
        self,
        name: str,
        features: datasets.Features,
        shown: Sequence[tuple[dict[str, Any], dict[Path, Any]]],
    ):
        self._name = name
        self._told = False
        self._labels: dict[Path, datasets.ClassLabel] = {}
        self.columns: dict[Path, Output] = {}
        for path, value in shown[0][1].items():
            kept = all(is_same(record, path, made) for record, made in shown)
            feature = feature_at(features, path)
            self.columns[path] = self._output(path, value, feature, kept)
            if kept and (names := class_label(feature)):
                self._labels[path] = names

    def _output(self, path: Path, value: Any, feature: Any, kept: bool) -> Output:
        array = self._array(path, value)
        feature = feature if kept else made_feature(feature, value, array)
        if array is None:
            return Output(path, (), OBJECT, OBJECT, feature, kept, f"{value!r:.60}")
        stored = (stored_dtype(feature) if kept else None) or array.dtype
        dtype = array_dtype(feature, stored) if kept else device_dtype(stored)
        shown = f"{array.dtype} of shape {array.shape}"
        return Output(path, array.shape, dtype, array.dtype, feature, kept, shown)

    @property
    def features(self) -> datasets.Features:
        """The features of the columns, of those that have one."""
        known = [(c.path, c.feature) for c in self.columns.values() if c.feature is not None]
        return datasets.Features(nested(known))

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        structs = ((c.path, jax.ShapeDtypeStruct(c.shape, c.dtype)) for c in self.columns.values())
        return nested(structs)

    def why_host(self) -> dict[Path, str]:
        """Returns why host columns are no arrays."""
        return {
            c.path: f"the transform {self._name} returns {c.shown} for it"
            for c in self.columns.values()
            if c.dtype == OBJECT
        }

    def host_column(self, path: Path, cells: np.ndarray) -> HostColumn:
        """Returns a host column of Python objects."""
        fix = f"Return numbers, or leave {path[0]!r} out of what the transform returns."
        return HostColumn(".".join(path), cells, reason=self.why_host()[path], fix=fix)

    def buffers(
        self, rows: int, empty: Callable[..., np.ndarray] = np.empty
    ) -> dict[Path, np.ndarray]:
        """Returns arrays of shape `(rows, ...)` to write records to, each made by `empty`."""
        return {c.path: empty((rows, *c.shape), c.dtype) for c in self.columns.values()}

    def write(self, buffers: dict[Path, np.ndarray], row: int, made: dict[Path, Any]) -> None:
        """Writes what the transform made of a record; safe on several threads for different rows.

        Raises:
            Unlike: It has other columns, shapes or dtypes than that of the first record.
        """
        if made.keys() != self.columns.keys():
            raise Unlike(
                f"the transform {self._name} returned the columns {listed(map('.'.join, made))}, "
                f"and {listed(c.name for c in self.columns.values())} for the first record: return "
                "the same columns for all records"
            )
        for path, column in self.columns.items():
            value = made[path]
            if column.dtype == OBJECT:
                buffers[path][row] = value
                continue
            array = self._array(path, value)
            if array is None or not _fits(column, value, array):
                found = (
                    f"{value!r:.60}" if array is None else f"{array.dtype} of shape {array.shape}"
                )
                raise Unlike(self._unlike(column, found))
            self._expect_range(column, array)
            buffers[path][row] = array

    def _array(self, path: Path, value: Any) -> np.ndarray | None:
        """Returns a value as an array of numbers, None for one that is none."""
        if value is None or isinstance(value, (str, bytes)):
            return None
        if isinstance(value, PIL.Image.Image) and value.mode in ("P", "PA", "1"):
            value = value.convert("L" if value.mode == "1" else "RGB")
        if isinstance(value, jax.Array) and not self._told:
            self._told = True
            logger.warning(
                "The transform %s returns %r as a JAX array, which goes to the device and back for "
                "each record: compute it with NumPy.",
                *(self._name, ".".join(path)),
            )
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            return None
        return array if array.dtype.kind in _NUMBERS else None

    def _unlike(self, column: Output, found: str) -> str:
        ways = "Pad, cut or resize it in the transform"
        if column.kept:
            ways += (
                ", which returns this column as it is (datarax.transforms has tokenize, resize and "
                "audio_window), or leave it out of what the transform returns"
            )
        return (
            f"column {column.name!r}: the transform {self._name} returned {found}, and "
            f"{column.shown} for the first record. {ways}"
        )

    def _expect_range(self, column: Output, array: np.ndarray) -> None:
        if names := self._labels.get(column.path):
            low, high = (array.min(), array.max()) if array.size else (0, 0)
            if low < -1 or high >= len(names.names or ()):
                label = int(low if low < -1 else high)
                said = said_of(names, label, column.path[0])
                raise Unlike(f"column {column.name!r}: {said}")
        if array.dtype.kind in "iu" and column.dtype.itemsize < array.dtype.itemsize and array.size:
            limits = np.iinfo(column.dtype)
            outside = array[(array < limits.min) | (array > limits.max)]
            if outside.size:
                raise Unlike(
                    f"column {column.name!r}: {outside.flat[0]} does not fit into {column.dtype}, "
                    "and JAX has 64-bit integers only after jax.config.update('jax_enable_x64', "
                    "True). Write that, or return smaller numbers"
                )


def _fits(column: Output, value: Any, array: np.ndarray) -> bool:
    if array.shape != column.shape:
        return False
    if array.dtype == column.given:
        return True
    # Python's numbers have no dtype of their own: 1 is as good as 1.0.
    return isinstance(value, _PYTHONS) and np.can_cast(array.dtype, column.given, "safe")
