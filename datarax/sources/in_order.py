"""Sources that give their records in order, without numbers: streams, iterables, mixtures."""

from typing import Any

from datarax.sources.source import Source

_VIEWS = ("select", "split", "fold", "balanced", "weighted")


class InOrder(Source):
    """A source whose records have no numbers, so that there are no views of it.

    Raises:
        AttributeError: If a view is asked for, with the line to write instead.
    """

    def __getattr__(self, name: str) -> Any:
        """Returns nothing: it is called where there is no such attribute."""
        if name in _VIEWS:
            raise AttributeError(
                f"{name}() needs records with numbers, and {type(self).__name__} gives its records "
                "in order. Of a stream, take some before, with dataset.take(1_000) or "
                "dataset.skip(1_000); of a mixture, take views of its sources; or read the data by "
                "number, with HFIndexedSource or HFEagerSource."
            )
        return super().__getattribute__(name)
