"""Safetensors files: looked into, read tensor by tensor, and written.

A file is the length of a header in 8 bytes, the header in JSON, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). A model of several files has an index of them.
The library `safetensors` (0.8) opens local files only, and its NumPy side reads no 8-bit floats.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from datarax.errors import listed

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
USUAL = "model.safetensors.index.json", "model.safetensors"
"""What a folder, or a repository of the Hub, calls its weights."""

_SPECIAL = {"BOOL": "bool", "C64": "complex64", "BF16": "bfloat16"}
_SPECIAL |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_KINDS = {"F": "float", "I": "int", "U": "uint"}
_CODES = {dtype: code for code, dtype in _SPECIAL.items()}
_LONGEST = 100_000_000  # bytes of a header, as the format has it


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file that is not read yet.

    Args:
        path: The file.
        dtype: Its dtype.
        shape: Its shape.
        start: Where its bytes begin in the file.
    """

    path: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Reads the tensor.

        Raises:
            RuntimeError: If the file ends before.
        """
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(size)
        if len(content) < size:
            raise _damaged(self.path, "it ends within a tensor")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


def is_safetensors(path: epath.Path) -> bool:
    """Returns whether a path is of a safetensors file, or of an index of several."""
    return path.name.endswith((SUFFIX, INDEX))


def tensors(path: epath.Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, of an index of several, or of a folder, by name.

    Args:
        path: Where they are.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If a header cannot be read.
    """
    if path.is_dir():
        path = _within(path)
    if not path.name.endswith(INDEX):
        return _header(path)
    found: dict[str, Tensor] = {}
    for shard in shards(path):
        found |= _header(path.parent / shard)
    return found


def shards(index: epath.Path) -> list[str]:
    """Returns the names of the files that an index tells of, which lie beside it."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise _damaged(index, "it is no index of safetensors files") from error


def write(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into a file, in order.

    Args:
        path: The file.
        arrays: The arrays by name.
    """
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _code(array.dtype), "shape": list(array.shape)}
        header[name]["data_offsets"] = [start, end]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors' bytes are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _within(folder: epath.Path) -> epath.Path:
    """Returns the index, or the file, of a folder that holds a model."""
    names = sorted(path.name for path in folder.iterdir())
    usual = [name for name in USUAL if name in names]
    found = usual or [name for name in names if name.endswith(INDEX)]
    found = found or [name for name in names if name.endswith(SUFFIX)]
    if len(found) > 1 and not usual:
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds {listed(found)}: name one of them, as in "
            f"{os.fspath(folder / found[0])!r}."
        )
    if not found:
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no safetensors file, only {listed(names[:8])}."
        )
    return folder / found[0]


def _header(path: epath.Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST:
            raise _damaged(path, "it is no safetensors file")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        return {
            name: Tensor(
                path, _dtype(one["dtype"]), tuple(one["shape"]), 8 + length + one["data_offsets"][0]
            )
            for name, one in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be read ({type(error).__name__})") from error


def _dtype(code: str) -> np.dtype:
    """Returns the dtype that the format calls `F32`, `BF16`, `F8_E4M3`, `I64`, `BOOL`..."""
    return jnp.dtype(_SPECIAL.get(code) or _KINDS[code[0]] + code[1:])


def _code(dtype: np.dtype) -> str:
    letter = {"f": "F", "i": "I", "u": "U"}.get(dtype.kind, "")
    return _CODES.get(dtype.name) or f"{letter}{8 * dtype.itemsize}"


def _damaged(path: epath.Path, why: str) -> RuntimeError:
    return RuntimeError(f"{os.fspath(path)} is damaged: {why}. Copy or download it again.")
