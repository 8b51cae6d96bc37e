"""Several transforms, one after the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from datarax.columns.transform import Transform, TransformFunction

Record = Mapping[str, Any]


class _Chain:
    """Transforms one after the other; those that take a generator get the same one."""

    def __init__(self, transforms: tuple[Transform, ...]):
        self.transforms = transforms
        # By this name states and errors know it.
        self.__qualname__ = f"chain({', '.join(step.name for step in transforms)})"

    def _run(self, record: Record, rng: np.random.Generator | None) -> Record:
        for transform in self.transforms:
            record = transform.call(record, rng)
        return record


class _PlainChain(_Chain):
    def __call__(self, record: Record) -> Record:
        return self._run(record, None)


class _RandomChain(_Chain):
    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return self._run(record, rng)


def chain(*transforms: TransformFunction) -> TransformFunction:
    """Returns a transform that applies several, one after the other.

    It takes a generator if one of them does, and gives all of these the same one.

    Args:
        *transforms: Functions `(record) -> record` or `(record, rng) -> record`, at least one.

    Raises:
        TypeError: If one of them cannot be called so.
        ValueError: If there are none.

    Example:
        >>> double = lambda record: record | {"x": 2 * record["x"]}
        >>> chain(double, double)({"x": 3})
        {'x': 12}
    """
    if not transforms:
        raise ValueError("chain() needs at least one transform, as in chain(resize(224), ...).")
    steps = tuple(Transform(transform) for transform in transforms)
    return _RandomChain(steps) if any(step.draws for step in steps) else _PlainChain(steps)
