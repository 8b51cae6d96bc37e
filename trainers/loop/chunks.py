"""Chunks: the steps that run between two looks up, each with the data that serves them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def chunks(
    blocks: Iterable[tuple[Any, int, int]], most: Callable[[int], int]
) -> Iterator[tuple[Any, int, int]]:
    """Divides the steps that blocks of data serve.

    Args:
        blocks: Data, the first step that they serve, and the end of these steps.
        most: Returns how many steps from step `t` on a chunk has at most; asked when it is due.

    Yields:
        A block's data, a chunk's first step and its end.

    Example:
        >>> list(chunks([("a", 0, 5), ("b", 5, 7)], lambda t: 4))
        [('a', 0, 4), ('a', 4, 5), ('b', 5, 7)]
    """
    for data, t, end in blocks:
        while t < end:
            stop = min(t + most(t), end)
            yield data, t, stop
            t = stop
