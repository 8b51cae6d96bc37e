"""The result as a notebook shows it: one frame, whose styles are its own."""

import html
import re

from flax import nnx

from trainers import Result


def test_a_notebook_shows_metrics_and_curves_in_a_frame():
    history = [{"step": s, "epoch": 0.0, "train/loss": 1 / s, "rows_seen": s} for s in (1, 2, 3)]
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    metrics = {"train/loss": 1 / 3, "eval/accuracy": 0.5, "odd<name>": 2.0}
    result = Result(3, model, None, metrics, history, (2, 0.25), "finished")
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)"[^<>]*></iframe>', result._repr_html_())
    page = html.unescape(found[1])
    for told in ("<h1>Linear</h1>", "finished", "50.00%", "best, step 2", "odd&lt;name&gt;"):
        assert told in page
    assert page.count("<polyline") == 1
    assert page.count("<circle") == 3
