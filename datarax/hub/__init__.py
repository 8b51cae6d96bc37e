"""The Hub: from a name to a split, loaded or streamed."""

from datarax.hub.load import load_split

__all__ = ["load_split"]
