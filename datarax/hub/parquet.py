"""Which columns a builder reads of its files, and what the footers of Parquet files say."""

import os
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from datarax.errors import chosen
from datarax.hub.private import xopen
from datarax.hub.secrets import redacted

logger = getLogger(__name__)

_SMALL = 1 << 20  # bytes of a file that may have no rows
ROWS = 1024  # rows to read at a time where the first row group has none


def narrow(
    builder: Any, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> list[str] | None:
    """Lets a builder read some columns only, of Parquet files and of CSV files on this machine.

    Args:
        builder: Any builder; those of other files read whole rows.
        include: The columns to read; None for all.
        exclude: Columns to leave out.

    Returns:
        The columns that it reads, None for all.

    Raises:
        ValueError: There is no such column, or none is left.
    """
    if include is None and not exclude:
        return None
    if builder.name == "csv":
        return _narrow_csv(builder, include, exclude)
    if builder.name != "parquet" or builder.config.columns is not None:
        return None
    features = builder.info.features
    known = list(features) if features else (schema := _schema(builder)).names
    names = chosen(known, include, exclude)
    if len(names) == len(known):
        return None
    if (
        features is None
    ):  # of these columns alone: `datasets` may know no feature for another's type
        fields = [schema.field(name) for name in names]
        features = datasets.Features.from_arrow_schema(pa.schema(fields, schema.metadata))
    builder.config.columns = names
    builder.info.features = datasets.Features({name: features[name] for name in names})
    return names


def _narrow_csv(
    builder: Any, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> list[str] | None:
    config, files = builder.config, _files(builder)
    own = config.usecols, config.names, config.features, config.skiprows  # the user's own choice
    plain = config.header == "infer" and len(config.delimiter or config.sep) == 1
    if any(part is not None for part in own) or not plain:
        return None
    if not files or not os.path.isfile(files[0]):
        return None
    read = csv.ReadOptions(encoding=config.encoding or "utf8")
    parse = csv.ParseOptions(delimiter=config.delimiter or config.sep)
    try:
        with csv.open_csv(files[0], read, parse) as reader:
            known = reader.schema.names
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None  # reading the rows names the file and the line
    names = chosen(known, include, exclude)
    if len(names) == len(known):
        return None
    config.usecols = names
    return names


def allow_empty(builder: Any) -> None:
    """Lets a builder read local Parquet files that begin without rows.

    `datasets` reads as many rows at a time as the first row group has, and fails where it has none.
    """
    if builder.name != "parquet" or builder.config.batch_size:
        return
    for file in _files(builder):
        place = Path(file)
        if place.is_file() and place.stat().st_size < _SMALL:
            try:
                groups = pq.read_metadata(place)
            except pa.ArrowInvalid:
                return  # reading the rows names the file that is torn
            rows = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
            if rows and not rows[0]:
                builder.config.batch_size = max(builder.config.batch_size or 1, *rows)


def has_no_batch_size(error: BaseException | None) -> bool:
    """Returns whether an error is that of a file whose first row group has no rows.

    Files on this machine are looked at before, by `allow_empty`; each footer of another is a
    request.
    """
    while error is not None:
        if isinstance(error, pa.ArrowInvalid) and "BatchSize must be greater" in str(error):
            return True
        error = error.__cause__
    return False


def num_rows(builder: Any, split: str) -> int | None:
    """Returns how many rows a split's files hold, None unless they are Parquet on this machine."""
    files = (builder.config.data_files or {}).get(split, [])
    if builder.name != "parquet" or not files or not all(map(os.path.isfile, files)):
        return None
    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except pa.ArrowInvalid:
        return None  # reading the rows names the file that is torn


def note_other_names(builder: Any, name: str) -> None:
    """Logs a warning where a Parquet file names the classes of a column otherwise than its card.

    Files on this machine are all looked at; of others the first, since each is a request.

    Args:
        builder: A builder whose features are those of the card.
        name: The dataset's name, for the warning.
    """
    files = _files(builder)
    claimed = _class_names(builder.info.features)
    if builder.name != "parquet" or not claimed:
        return
    for file in files if all(map(os.path.isfile, files)) else files[:1]:
        try:
            stored = _schema(builder, file)
        except pa.ArrowInvalid:
            return  # reading the rows names the file that is torn
        if not stored.metadata or b"huggingface" not in stored.metadata:
            continue
        own = _class_names(datasets.Features.from_arrow_schema(stored))
        for column in own.keys() & claimed.keys():
            if own[column] != claimed[column]:
                logger.warning(
                    "The card of %r names the classes of column %r %s, its file %s names them %s. "
                    "The card's names are used: mend it, or declare the names, "
                    'download_kwargs={"features": datasets.Features({...})}.',
                    redacted(name),
                    column,
                    claimed[column],
                    redacted(file),
                    own[column],
                )
                return


def _class_names(feature: Any, column: str = "") -> dict[str, list[str]]:
    """Returns the names of the classes in features, by the column's path."""
    if isinstance(feature, dict):
        parts = (_class_names(part, f"{column}.{key}") for key, part in feature.items())
        return {path: names for part in parts for path, names in part.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return _class_names(feature.feature, column)
    is_named = isinstance(feature, datasets.ClassLabel) and feature.names
    return {column.removeprefix("."): list(feature.names)} if is_named else {}


def _files(builder: Any) -> list[str]:
    return [str(file) for files in (builder.config.data_files or {}).values() for file in files]


def _schema(builder: Any, file: str | None = None) -> pa.Schema:
    options = datasets.DownloadConfig(
        token=builder.token, storage_options=builder.storage_options or {}
    )
    file = _files(builder)[0] if file is None else file
    with xopen(file, "rb", download_config=options) as stream:
        return pq.read_schema(stream)
