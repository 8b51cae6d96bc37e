"""Decoded images on disk: to load the same images again takes reading, not decoding.

A file holds the pixels, then what is known of them as JSON, then the length of that. Its name is a
hash of every encoded byte and of the decoder, so a file is never out of date. `DATARAX_CACHE=0`
turns the cache off, `DATARAX_CACHE_DIR` places it, `DATARAX_CACHE_BYTES` limits it (10 GiB).
"""

import functools
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import datasets
import datasets.config
import numpy as np
import PIL

from datarax.columns.arrow import Column, blocks, cores
from datarax.columns.fingerprint import Digest

logger = logging.getLogger(__name__)

_DECODER = (1, PIL.__version__)  # count up when `open_image` makes something else of a file
_LEAST = 1 << 20  # bytes of pixels that are worth a file
_SUMMED = 64 << 10  # bytes in a sum
_PART = 256  # sums made by a core at a time
_LENGTH = 8  # bytes of the number that ends a file

Stored = tuple[np.ndarray, dict[int, str]]
"""Pixels of shape `(n, ...)`, and what is wrong with images, by row."""


def worth(size: int) -> bool:
    """Returns whether images of about `size` decoded bytes are worth a file."""
    return size >= _LEAST


def enabled(size: int) -> bool:
    """Returns whether images of about `size` decoded bytes are kept on disk."""
    return worth(size) and os.environ.get("DATARAX_CACHE", "1") != "0"


def cache_key(column: Column) -> str:
    """Returns the key of an image column: a hash of its encoded bytes, order and decoder."""
    digest = Digest(_DECODER, column.feature.mode, column.rows.length)
    for where, block in blocks(column.values, column.rows):
        if not isinstance(where, slice):
            digest.bytes(where)
        digest.arrow(block)
    return digest.hex()


def load(key: str) -> Stored | None:
    """Returns what was stored under a key, or None if nothing is that is whole.

    The pixels map the file, so processes of one machine share their memory; what is written into
    them stays in this process.

    Args:
        key: A key from `cache_key`.

    Returns:
        The pixels, of shape `(n, ...)`, and what was wrong with images, by row.
    """
    path = _directory() / key
    try:
        with path.open("rb") as file:
            file.seek(-_LENGTH, os.SEEK_END)
            length = int.from_bytes(file.read(), "little")
            file.seek(-_LENGTH - length, os.SEEK_END)
            notes = json.loads(file.read(length))
        shape = tuple(notes["shape"])
        pixels = np.memmap(path, notes["dtype"], "c", shape=shape).view(np.ndarray)
        if _checksum(pixels) != notes["checksum"]:
            raise ValueError("its checksum is another")
        os.utime(path)  # what is not used goes first
        return pixels, {int(row): found for row, found in notes["damage"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        logger.warning(
            "The file of decoded images %s is damaged (%s); decoding again.", path, error
        )
        return None


def store(key: str, pixels: np.ndarray, damage: dict[int, str]) -> None:
    """Stores decoded images, whole or not at all, and drops what was not used for longest.

    That it cannot is no failure, but said in a warning, once.

    Args:
        key: A key from `cache_key`.
        pixels: The images, of shape `(n, ...)`.
        damage: What is wrong with images, by row.
    """

    def write(file: IO[bytes]) -> Stored:
        file.write(pixels.reshape(-1).view(np.uint8).data)  # `tofile` does not say why it cannot
        return pixels, damage

    stored(key, pixels.nbytes, write)


def stored(key: str, size: int, write: Callable[[IO[bytes]], Stored]) -> Stored | None:
    """Stores decoded images that are written straight into their file, whole or not at all.

    What was not used for longest is dropped. Where there is no room, nothing is stored, and a
    warning says so once.

    Args:
        key: A key from `cache_key`.
        size: About how many bytes they take.
        write: Writes the pixels to the file's begin; returns them, and what is wrong with images.

    Returns:
        What `write` returned, or None if nothing could be stored.
    """
    directory = _directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not _make_room(directory, size):
            return None
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".part", delete=False) as file:
            try:
                pixels, damage = write(file)
                notes = {"dtype": pixels.dtype.str, "shape": pixels.shape, "damage": damage}
                text = json.dumps(notes | {"checksum": _checksum(pixels)}).encode()
                file.seek(0, os.SEEK_END)
                file.write(text + len(text).to_bytes(_LENGTH, "little"))
                file.flush()
                os.replace(file.name, directory / key)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        _warn_once(str(directory), error.strerror)
        return None
    logger.info(
        "Decoded images (%.3g GB) are kept in %s, so that the next start only reads them. "
        "DATARAX_CACHE=0 turns this off, DATARAX_CACHE_BYTES limits it.",
        *(pixels.nbytes / 1e9, directory),
    )
    return pixels, damage


class PixelFile:
    """Pixels that are written into a file row by row, by several threads, and then map it.

    Args:
        file: An open file; the pixels begin it.
        shape: Their shape, `(n, ...)`.
        dtype: Their dtype.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._shape, self._dtype = file, shape, dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def __setitem__(self, row: int, pixels: np.ndarray) -> None:
        array: Any = np.ascontiguousarray(pixels, self._dtype)
        data = memoryview(array).cast("B")
        at = row * self._row_bytes
        while data:  # a disk that fills up takes a part, and raises at the next call
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written

    def mapped(self) -> np.ndarray:
        """Returns the pixels; rows that were not written are 0."""
        os.truncate(self._file.fileno(), self._shape[0] * self._row_bytes)
        mapped = np.memmap(self._file.name, self._dtype, "r", shape=self._shape)
        return mapped.view(np.ndarray)


def _directory() -> Path:
    default = Path(datasets.config.HF_CACHE_HOME) / "datarax"
    return Path(os.environ.get("DATARAX_CACHE_DIR", default)).expanduser() / "images"


def _make_room(directory: Path, size: int) -> bool:
    """Removes files, the longest unused first, until `size` more bytes are within the limit."""
    limit = int(os.environ.get("DATARAX_CACHE_BYTES", 10 << 30))
    if size > limit:
        return False
    files = sorted(
        (entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(directory)
    )
    total = size + sum(taken for _, taken, _ in files)
    for _, taken, path in files:
        if total <= limit:
            break
        Path(path).unlink(missing_ok=True)
        total -= taken
    return True


def _checksum(pixels: np.ndarray) -> str:
    """Returns a hash of the sums of 64-bit words in each 64 KiB: a CRC takes ten times as long."""
    flat = pixels.reshape(-1).view(np.uint8)
    whole = flat.size // _SUMMED * _SUMMED
    words = flat[:whole].view(np.uint64).reshape(-1, _SUMMED // 8)
    with ThreadPoolExecutor(cores()) as pool:
        parts = [words[start : start + _PART] for start in range(0, len(words), _PART)]
        sums = pool.map(lambda part: part.sum(axis=1), parts)
        return hashlib.sha256(b"".join(map(bytes, [*sums, flat[whole:]]))).hexdigest()


@functools.cache
def _warn_once(directory: str, error: str | None) -> None:
    logger.warning(
        "Decoded images are not kept in %s (%s), so every start decodes them. Set "
        "DATARAX_CACHE_DIR to a directory that can be written, or DATARAX_CACHE=0 to do without.",
        directory,
        error,
    )
