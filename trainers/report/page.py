"""The page of a report: its frame, its style and its parts, as HTML that needs nothing else."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from trainers.report import chart
from trainers.run import PLACE

_STYLE = """
:root { --paper: #fbfaf8; --card: #fff; --ink: #22252a; --soft: #6d7480; --line: #e6e3dd;
  --train: #2f6fde; --eval: #d9622b; --c0: #8a93a3; --c1: #b08be0; --c2: #2f6fde; --c3: #d9622b;
  --c4: #2f9e77; --c5: #d9b52b; --c6: #d5d2cb; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --card: #1d2026; --ink: #e6e7ea;
  --soft: #98a0ad; --line: #2e323b; --train: #6c9eff; --eval: #ff9560; --c6: #454a55; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 28px clamp(14px, 3vw, 40px) 60px; }
header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; font-weight: 650; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 13px; margin: 40px 0 12px; font-weight: 600; text-transform: uppercase;
  letter-spacing: .07em; color: var(--soft); }
h3 { font-size: 15px; margin: 0; font-weight: 600; }
.status { padding: 1px 11px; border-radius: 99px; border: 1px solid; font-size: 13px;
  color: var(--soft); }
.status.finished { color: var(--c4); } .status.running { color: var(--train); }
.status.diverged { color: var(--eval); }
.lead { color: var(--soft); margin: 6px 0 12px; }
.bar { display: flex; height: 12px; border-radius: 6px; overflow: hidden; background: var(--line); }
.bar i { display: block; min-width: 1px; }
.progress { height: 5px; margin: 18px 0 22px; } .progress i { background: var(--train); }
.tiles, .charts, .samples { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 138px), 1fr)); }
.samples.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.tiles div, .charts figure, .samples dl, .card { background: var(--card); margin: 0;
  border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px; min-width: 0; }
.tiles b { display: block; font-size: 23px; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles span, small, figcaption span { color: var(--soft); font-size: 13px; }
figcaption { display: flex; justify-content: space-between; flex-wrap: wrap; gap: 0 12px; }
figcaption span { margin-left: 12px; }
figcaption span::before, .legend span::before { content: ""; display: inline-block; width: 9px;
  height: 9px; border-radius: 3px; margin-right: 6px; background: var(--key); }
svg { display: block; width: 100%; height: auto; margin-top: 6px; overflow: visible; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); }
.curve polyline { fill: none; stroke: var(--train); stroke-width: 2; stroke-linejoin: round; }
.curve circle { fill: var(--train); }
.curve.eval polyline { stroke: var(--eval); } .curve.eval circle { fill: var(--eval); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; margin-top: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
td, th { padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td:last-child, th:last-child { padding-right: 0; }
td.n, th.n { text-align: right; } td { overflow-wrap: anywhere; }
.share { width: min(240px, 22vw); } .share i { display: block; height: 8px; margin-top: 7px;
  border-radius: 4px; background: var(--train); opacity: .75; min-width: 1px; }
code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.samples:not(:empty) { margin-top: 14px; }
.samples dt { color: var(--soft); font-size: 12px; } .samples dd { margin: 0 0 8px;
  overflow-wrap: anywhere; } .samples dd:last-child { margin: 0; }
.samples img { width: 100%; max-width: 240px; border-radius: 6px; display: block;
  image-rendering: pixelated; margin: 3px 0; background: #0002; }
"""


def page(title: str, body: str, *, refresh: int | None = None) -> str:
    """Returns a whole page.

    Args:
        title: Its title.
        body: HTML.
        refresh: Seconds after which a browser reads it again; None: never.
    """
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,">{again}<title>{text(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def text(value: Any) -> str:
    """Returns a value as HTML text."""
    return html.escape(str(value))


def tiles(values: Mapping[str, str]) -> str:
    """Returns figures with their names below."""
    each = (f"<div><b>{text(v)}</b><span>{text(k)}</span></div>" for k, v in values.items())
    return f'<div class="tiles">{"".join(each)}</div>'


def figure(title: str, svg: str, curves: Iterable[str] = ()) -> str:
    """Returns a chart with its title and, of several curves, their colours."""
    colours = {curve: f"--key: var(--{text(curve)}, var(--train))" for curve in curves}
    keys = " ".join(f'<span style="{key}">{text(curve)}</span>' for curve, key in colours.items())
    head = f"<figcaption><h3>{text(title)}</h3><div>{keys}</div></figcaption>"
    return f"<figure>{head}{svg}</figure>"


def figures(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns a chart of each metric of a history, its training and evaluation together."""
    charts: dict[str, dict[str, list]] = {}
    for row in history:
        for name, value in row.items():
            if name not in PLACE and isinstance(value, int | float):
                part, _, metric = name.partition("/")
                curves = charts.setdefault(metric or name, {})
                curves.setdefault(part, []).append((row["step"], value))
    return [
        figure(metric, chart.lines(curves, label="step"), curves)
        for metric, curves in charts.items()
    ]


def shares(parts: Mapping[str, float], unit: str = "s") -> str:
    """Returns a bar of the parts of a whole and what each colour is."""
    whole = sum(parts.values()) or 1
    bar, keys = [], []
    for i, (name, part) in enumerate(parts.items()):
        bar.append(f'<i style="flex: {part / whole:.5f} 0 0; background: var(--c{i % 7})"></i>')
        keys.append(
            f'<span style="--key: var(--c{i % 7})">{text(name)} {part:,.1f} {unit} '
            f"<small>{part / whole:.1%}</small></span>"
        )
    bars, legend = "".join(bar), "".join(keys)
    return (
        f'<div class="card"><div class="bar">{bars}</div><div class="legend">{legend}</div></div>'
    )


def table(
    head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: Iterable[int] = ()
) -> str:
    """Returns a table.

    Args:
        head: Names of the columns; none for a table without.
        rows: The cells, HTML.
        numbers: Which columns are set to the right.
    """
    right = set(numbers)

    def row(tag: str, cells: Iterable[str]) -> str:
        kinds = ((f'<{tag} class="n">' if i in right else f"<{tag}>") for i in range(100))
        return "".join(f"{kind}{c}</{tag}>" for kind, c in zip(kinds, cells, strict=False))

    head = row("th", map(text, head))
    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="card scroll"><table>{top}<tbody>{body}</tbody></table></div>'
