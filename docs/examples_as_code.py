"""Has mkdocstrings show the doctests under `Example:` as code, as it does under `Examples:`."""

import re
from typing import Any

import griffe


class ExamplesAsCode(griffe.Extension):
    """Renames the section while the packages are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^(\s*)Example:", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
