"""Exporting: a model's parameters into a safetensors file."""

from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from trainers.devices import agreement
from trainers.devices.private import all_gather
from trainers.devices.variables import named
from trainers.weights import safetensors
from trainers.weights.fitting import without_lora
from trainers.workdir.store import absolute


def export(model: nnx.Module, path: epath.PathLike, *, merge_lora: bool = False) -> None:
    """Writes a model's parameters into a safetensors file.

    Where they are spread over processes, all call it together, and the first writes.

    Args:
        model: The model.
        path: The file, which ends in `.safetensors`; names in it are such as `linear.kernel`.
        merge_lora: Whether to add what `nnx.LoRA` and `nnx.LoRALinear` have learned to the kernels
            that they change, so that the file fits the model without them.

    Raises:
        ValueError: If a layer with LoRA has no kernel to add to.

    Example:
        >>> layer = nnx.LoRA(4, 2, 3, base_module=nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
        ...     rngs=nnx.Rngs(1))
        >>> export(layer, "/tmp/lora-merged.safetensors", merge_lora=True)
        >>> load("/tmp/lora-merged.safetensors")["kernel"].shape
        (4, 3)
    """
    flat = named(nnx.state(model, nnx.Param))
    gathered = {name: np.asarray(_gathered(value)) for name, value in flat.items()}
    if merge_lora:
        gathered = _merged(model, gathered)

    def write() -> None:
        if agreement.is_first():
            safetensors.write(absolute(path), gathered)

    if any(map(_is_spread, flat.values())):
        agreement.together(write)  # so that each may read it afterwards
    else:  # which the first process may do alone
        write()


def _merged(model: nnx.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns parameters without LoRA: `kernel + lora_a @ lora_b`, in the kernel's dtype."""
    arrays = dict(arrays)
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, nnx.LoRA):
            continue
        place = "".join(f"{part}." for part in path)
        # `nnx.LoRALinear` is a kernel with an `nnx.LoRA` beside it, called `lora`.
        beside = place.removesuffix("lora.") if module.base_module is None else None
        kernel = f"{place}base_module.kernel" if beside is None else f"{beside}kernel"
        if kernel not in arrays or kernel == f"{place}kernel":
            raise ValueError(
                f"merge_lora=True finds no kernel for {place.rstrip('.') or 'nnx.LoRA'} to be added"
                " to: give it base_module=nnx.Linear(...), or export without merge_lora."
            )
        a, b = (arrays.pop(place + name).astype(np.float32) for name in ("lora_a", "lora_b"))
        whole = arrays[kernel].astype(np.float32) + a @ b
        arrays[kernel] = whole.astype(arrays[kernel].dtype)
    return {without_lora(name): array for name, array in arrays.items()}


def _gathered(array: Any) -> Any:
    return all_gather(array, tiled=True) if _is_spread(array) else array


def _is_spread(array: Any) -> bool:
    """Returns whether no process has all of an array."""
    is_jax = isinstance(array, jax.Array)
    return is_jax and not (array.is_fully_addressable or array.is_fully_replicated)
