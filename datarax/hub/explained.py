"""Errors of the Hugging Face libraries and of Arrow, as errors that say what to do."""

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.errors as hub
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from datarax.errors import listed
from datarax.hub.client import endpoint, unreachable
from datarax.hub.private import COMMON, file_being_read, httpx
from datarax.hub.secrets import is_clean, raise_from, redacted

_NETWORK = (httpx.RequestError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)
_TORN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
_ACCESS = (
    "If it is private or gated, ask for access on its page, then run `hf auth login` or write "
    'download_kwargs={"token": ...}.'
)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what the libraries raise within into errors that name the file and say what to do.

    A message that holds a secret goes without it, and without the errors behind it.

    Args:
        name: the repository, folder or builder to name in them.
    """
    try:
        yield
    except Exception as error:
        told = _of_hub(name, error) or _of_files(name, error)
        if told is None and is_clean(error):
            raise
        told = told or RuntimeError(f"{name!r}: {type(error).__name__}: {error}")
        raise_from(type(told)(redacted(told)), error)


def _of_hub(name: str, error: Exception) -> Exception | None:
    if isinstance(error, hub.RevisionNotFoundError):
        return DatasetNotFoundError(f"{name!r} has no such branch, tag or commit.")
    if isinstance(error, hub.GatedRepoError):
        return DatasetNotFoundError(f"{name!r} is gated. {_ACCESS}")
    if isinstance(error, (hub.RepositoryNotFoundError, hub.HFValidationError)):
        said = f"{name!r} is no dataset at {endpoint()}, or a private one. {_ACCESS}"
        return DatasetNotFoundError(said)
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            said = f"{endpoint()} refused access to {name!r} ({status}). {_ACCESS}"
            return DatasetNotFoundError(said)
        return ConnectionError(f"{unreachable(name)} It answered {status}.")
    if isinstance(error, _NETWORK):
        return ConnectionError(f"{unreachable(name)} ({type(error).__name__})")
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in str(error):
        return ValueError(
            f"{name!r} is a loading script, which `datasets` does not run. The Hub may have its "
            'rows as Parquet: write download_kwargs={"revision": "refs/convert/parquet"}.'
        )
    return None


def _of_files(name: str, error: Exception) -> Exception | None:
    cause = error
    if isinstance(error, FileNotFoundError) and "data files" in str(error):
        return type(error)(f"{error}. Data files are such as {listed(COMMON)}, packed or not.")
    if isinstance(error, DatasetGenerationError):
        cause = error.__cause__ or error.__context__ or error
        if isinstance(cause, (*_NETWORK, hub.HfHubHTTPError)):
            return ConnectionError(f"{unreachable(name)} ({type(cause).__name__})")
    file = file_being_read(error)
    if file is None and not isinstance(error, DatasetGenerationError):
        return None
    place = f"the file {file!r} of {name!r}" if file else f"the data files of {name!r}"
    said = " ".join(str(cause).split()) or "nothing more is known"
    kind = type(error) if isinstance(error, DatasetGenerationError) else ValueError
    if isinstance(cause, OSError) and not isinstance(cause, _TORN):
        kind = type(cause) if type(cause) in (FileNotFoundError, PermissionError) else OSError
    if isinstance(cause, ImportError):
        kind = ImportError
    found = f"{type(cause).__name__}: {said[:600]}"
    return kind(f"{place[0].upper()}{place[1:]} cannot be read ({found}). {cure(cause, file)}")


def cure(error: BaseException, file: str | None = None) -> str:
    """Returns the sentence that says what to do where reading a file fails.

    Args:
        error: The error of a reader.
        file: The file, if it is known.
    """
    text = str(error)
    if isinstance(error, ImportError):
        return f"Install what reads it: {_package(text)}."
    if isinstance(error, FileNotFoundError):
        return "No such file exists: mend its path in the files, or put it there."
    if isinstance(error, _TORN) or "magic bytes" in text or "end of stream" in text.lower():
        return "The file is torn, as a copy that was broken off: copy it again, or remove it."
    if isinstance(error, UnicodeDecodeError) or "UTF8" in text or "UTF-8" in text:
        return 'Its text is in another encoding: write download_kwargs={"encoding": "latin-1"}.'
    if type(error).__name__ == "ParserError":  # of pandas, which no part of this package imports
        return 'Repair the line, or leave such out: download_kwargs={"on_bad_lines": "skip"}.'
    if "greater than configured num_classes" in text:
        return (
            "A label has no name: mend the names in the card, or declare them, "
            'download_kwargs={"features": datasets.Features({...})}. HFStreamingSource names the '
            "column and the row."
        )
    if isinstance(error, pa.ArrowInvalid) and file and Path(file).suffix in (".parquet", ".arrow"):
        return "Repair or remove the file."
    return (
        "The files must make one table: declare a type that holds all rows, "
        'download_kwargs={"features": datasets.Features({...})}, repair the row, or read the files '
        'apart, download_kwargs={"data_files": ...}.'
    )


def _package(text: str) -> str:
    known = (
        "zstandard",
        "lz4",
        "py7zr",
        "rarfile",
        "h5py",
        "nibabel",
        "pdfplumber",
        "soundfile",
        "torchcodec",
    )
    return "pip install " + next((name for name in known if name in text.lower()), "it, as it says")
