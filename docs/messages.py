"""Lists every message of both packages in a page that asks for it: `<!-- messages -->`."""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHORTEST = 40  # characters; what is shorter is raised by a name that says it all


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the messages where a page asks for them; MkDocs calls it for each page."""
    return markdown.replace("<!-- messages -->", "\n".join(listed()))


def listed() -> Iterator[str]:
    """Yields lines of Markdown: a heading for each folder, and its messages."""
    for package in ("datarax", "trainers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found = sorted(set(messages(path)))
            if found:
                yield f"\n**{path.relative_to(ROOT).with_suffix('').as_posix()}**\n"
                yield from (f"- {kind}: {html.escape(text, quote=False)}" for kind, text in found)


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the kind and the text of each error and warning of a file, with … for its values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            text = " ".join("".join(map(_text, node.args)).split())
            if len(text) >= SHORTEST and name.endswith(("Error", "warning", "error")):
                kind = name if name.endswith("Error") else "a warning"
                yield kind, re.sub(r"([*_\[\]])", r"\\\1", text.replace("`", "'"))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("%s", "…").replace("%r", "…").replace("%d", "…")
    return "…" if isinstance(node, ast.FormattedValue) else ""
