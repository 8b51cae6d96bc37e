"""What is wrong with a row of a stream, and how an error says it."""

from typing import NamedTuple

import datasets
import pyarrow as pa

from datarax.columns.image_file import DamagedImage
from datarax.columns.lists import fits, leaf_type
from datarax.columns.nested import Path
from datarax.errors import listed
from datarax.stream.schema import ColumnSpec


class Fault(NamedTuple):
    """What is wrong with a row.

    Args:
        column: The column's name.
        found: What the row holds, and what to do.
        is_damage: Whether the row's image cannot be decoded: `on_bad_rows="skip"` leaves it out. A
            row that does not fit its column is an error in any case.
    """

    column: str
    found: str
    is_damage: bool = False

    def error(self, label: str) -> Exception:
        """Returns what is raised for the row, which `label` names."""
        return ValueError(f"column {self.column!r}, {label}: {self.found}.")


class Raised(NamedTuple):
    """What a transform raised for a row.

    Args:
        exception: The exception, whose message names the row.
        is_damage: Whether `on_bad_rows="skip"` leaves the row out.
    """

    exception: Exception
    is_damage: bool

    def error(self, label: str) -> Exception:
        """Returns what is raised for the row."""
        return self.exception


Faults = dict[int, Fault | Raised]  # by the number of the row


def unlike(spec: ColumnSpec, values: pa.Array, row: int) -> Fault:
    """Returns the fault of a row whose values are no such numbers."""
    text = repr(values[row].as_py())
    text = text if len(text) < 60 else f"{text[:56]} ..."
    whole = spec.host is None and pa.types.is_integer(leaf_type(values.type))
    if not (whole and spec.dtype.kind in "iu" and fits(values[row : row + 1], spec.shape)):
        return misfit(spec, text)
    return Fault(
        spec.name,
        f"{text} does not fit into {spec.dtype}, and JAX has 64-bit integers only after "
        "jax.config.update('jax_enable_x64', True). Write that, store smaller numbers, or leave "
        f"the column out: exclude_keys={{{spec.path[0]!r}}}",
    )


def misfit(spec: ColumnSpec, found: str) -> Fault:
    """Returns the fault of a row that is not as the first rows of its column."""
    if spec.host is not None:
        begun = f"a list of {spec.host.dtype}"
    else:
        begun = f"{spec.dtype} of shape {spec.shape}" if spec.shape else f"one {spec.dtype}"
    return Fault(
        spec.name,
        f"found {found}, and in the stream's first rows each is {begun}. Declare a type that holds "
        f"all rows, features=datasets.Features({{{spec.path[0]!r}: ...}}), drop or fill such rows, "
        "ds = ds.filter(...) or ds.map(...), or leave the column out: "
        f"exclude_keys={{{spec.path[0]!r}}}",
    )


def extra(name: str, features: datasets.Features) -> Fault:
    """Returns the fault of a row with a column that the first rows lack."""
    return Fault(
        name,
        f"the stream's first rows have no such column, only {listed(features)}. Declare all "
        "columns, features=datasets.Features({...}), or choose some with include_keys or "
        "exclude_keys",
    )


def no_dict(path: Path) -> Fault:
    """Returns the fault of a row that is None where a column is a dict."""
    return Fault(
        ".".join(path),
        "found None, and in the stream's first rows each is a dict. Drop or fill such rows, ds = "
        f"ds.filter(...) or ds.map(...), or leave the column out: exclude_keys={{{path[0]!r}}}",
    )


def damage(spec: ColumnSpec, error: DamagedImage) -> Fault:
    """Returns the fault of a row whose image cannot be decoded."""
    return Fault(
        spec.name,
        f"{error}: the image cannot be decoded. Repair it, or leave such rows out with "
        "on_bad_rows='skip'",
        is_damage=True,
    )
