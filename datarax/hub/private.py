"""Private names of `datasets` and `huggingface_hub`, in one place, each with a test of its meaning.

Those of iterable datasets lie in `datarax.stream.iterable`. `tests/datarax/hub/test_private.py`
says of each that it is still there and still means the same.
"""

import hashlib
import traceback
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import TypedSequence as TypedSequence
from datasets.data_files import DataFilesDict as DataFilesDict
from datasets.data_files import get_data_patterns as get_data_patterns
from datasets.data_files import sanitize_patterns as sanitize_patterns
from datasets.features.features import cast_to_python_objects as cast_to_python_objects
from datasets.features.features import encode_nested_example as encode_nested_example
from datasets.features.features import generate_from_arrow_type as generate_from_arrow_type
from datasets.features.features import require_decoding as require_decoding
from datasets.load import import_main_class, infer_module_for_data_files
from datasets.naming import camelcase_to_snakecase as camelcase_to_snakecase
from datasets.packaged_modules import _EXTENSION_TO_MODULE, _PACKAGED_DATASETS_MODULES
from datasets.packaged_modules.cache.cache import Cache as Cache
from datasets.table import cast_array_to_feature as cast_array_to_feature
from datasets.utils.file_utils import is_local_path as is_local_path
from datasets.utils.file_utils import xopen as xopen
from huggingface_hub.utils import httpx as httpx

PACKAGED = frozenset(_PACKAGED_DATASETS_MODULES)
"""The names of the builders that come with `datasets`: `"parquet"`, `"json"`, ..."""

EXTENSIONS: dict[str, tuple[str, dict[str, Any]]] = _EXTENSION_TO_MODULE
"""The builder that reads files of a suffix, and its arguments: `("csv", {"sep": ";"})`."""

COMMON = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".tar")
"""The suffixes of `EXTENSIONS` that a message lists."""


def builder_configs() -> list[type[datasets.BuilderConfig]]:
    """Returns the configurations of all packaged builders: their fields are keyword arguments."""
    modules = (module for module, _ in _PACKAGED_DATASETS_MODULES.values())
    builders = (import_main_class(module) for module in modules)
    return [builder.BUILDER_CONFIG_CLASS for builder in builders if builder is not None]


def module_of(files: DataFilesDict) -> tuple[str, dict[str, Any]]:
    """Returns the builder that reads files, by their suffixes, and its arguments."""
    module, arguments = infer_module_for_data_files(files)
    if module is None:
        raise FileNotFoundError(f"There are no data files of a known suffix among {files}.")
    return module, arguments


def table_of(dataset: datasets.Dataset) -> pa.Table:
    """Returns the whole table behind a dataset: `positions_of` says which of its rows count."""
    return dataset.data.table


def positions_of(dataset: datasets.Dataset) -> np.ndarray | None:
    """Returns the table's rows that are the dataset's, in its order: int64 of shape `(n,)`.

    None stands for all of them, as they are stored. `select`, `shuffle`, `sort` and `filter` leave
    such an index mapping, and `dataset.data` ignores it.
    """
    if dataset._indices is None:
        return None
    return dataset._indices.column(0).to_numpy().view(np.int64)


def rows_between(dataset: datasets.Dataset, start: int, stop: int) -> pa.Table:
    """Returns rows of a dataset without an index mapping; formatting takes ten times as long."""
    return dataset.data.fast_slice(start, stop - start)


def file_being_read(error: BaseException) -> str | None:
    """Returns the file that a packaged builder was reading when it raised an error, if any was.

    No error of theirs says it: the file is a variable of the method that reads.
    """
    found, seen = None, set()
    cause: BaseException | None = error
    while found is None and cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_globals.get("__name__", "").startswith("datasets.packaged_modules."):
                found = frame.f_locals.get("file") or found
        cause = cause.__cause__ or cause.__context__
    return str(found).rpartition("::")[2] if found else None


def read_from(builder: datasets.DatasetBuilder, folder: Path) -> None:
    """Lets a builder read the rows that a folder holds, prepared by a builder like it."""
    builder._cache_dir = builder._output_dir = str(folder)
    builder.info = datasets.DatasetInfo.from_directory(str(folder))


def keep_apart(builder: datasets.DatasetBuilder, request: str) -> None:
    """Lets a builder prepare its rows in a folder of their own, beside those of other requests."""
    *parents, config, version, last = Path(builder.cache_dir).parts
    apart = f"{config}-{hashlib.sha256(request.encode()).hexdigest()[:16]}"
    folder = Path(*parents, apart, version, last)
    builder._cache_dir = builder._output_dir = str(folder)
    if (folder / "dataset_info.json").is_file():
        builder.info = datasets.DatasetInfo.from_directory(str(folder))
