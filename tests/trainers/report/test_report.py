"""The report: one page that shows a run, escapes what it shows, and needs nothing else."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax import HFEagerSource, Pipeline
from tests.support.models import MLP
from tests.support.runs import at
from trainers import Trainer
from trainers.report.chart import lines

pytestmark = pytest.mark.usefixtures("compiled_once")

N = 40
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars"
)


def source(n=N):
    rng = np.random.default_rng(0)
    return HFEagerSource.from_dataset(
        datasets.Dataset.from_dict(
            {
                "x": rng.normal(size=(n, 4)).astype(np.float32).tolist(),
                "picture": list(rng.integers(0, 255, (n, 12, 12)).astype(np.uint8)),
                "text": [f"<script>alert({i})</script> " + "word " * 200 for i in range(n)],
                "label": rng.integers(0, 3, n).tolist(),
            },
            features=datasets.Features(
                {
                    "x": datasets.List(datasets.Value("float32"), length=4),
                    "picture": datasets.Image(),
                    "text": datasets.Value("string"),
                    "label": datasets.ClassLabel(names=["a<b", "b&c", '"d"']),
                }
            ),
        ),
        shuffle=True,
    )


def loss(model, batch):
    logits = model(batch["x"])
    return (logits**2).sum(-1), {"logits": logits}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's trainer, its result and its report."""
    workdir = tmp_path_factory.mktemp("run")
    trainer = Trainer(
        MLP(), source(), loss=loss, eval_source=source(), batch_size=8, epochs=3, log_every=3,
        workdir=workdir,
    )  # fmt: skip
    result = trainer.fit()
    return trainer, result, workdir / "report.html"


def test_it_shows_curves_data_parameters_configuration_and_time(run):
    _, result, path = run
    page = path.read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for part in ("finished", "step 15 of 15", "40 records in batches of 8", "hidden.kernel"):
        assert part in text
    for part in ("compiling", "computing", "evaluating", "saving", "examples/s", "batch_size"):
        assert part in text
    assert page.count('class="curve train"') == page.count('class="curve eval"') == 1
    assert page.count("data:image/png;base64,") == 8
    assert f"{result.metrics['eval/loss']:.4g}" in text
    assert re.search(r"\b120\s+rows seen", text)
    assert len(page) < 60_000
    assert [file.name for file in path.parent.glob("report*")] == ["report.html"]


def test_it_shows_what_the_data_holds_as_text_and_not_as_markup(run):
    page = run[2].read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "a&lt;b" in page or "b&amp;c" in page or "&quot;d&quot;" in page
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_it_is_there_while_the_run_goes_on_and_says_how_it_ended(tmp_path):
    seen = []

    def look(run):
        path = tmp_path / "report.html"
        seen.append(path.read_text() if path.exists() else "")
        return run.step >= 6

    Trainer(
        MLP(), source(), loss=loss, batch_size=8, log_every=3, epochs=3, callbacks=[look],
        workdir=tmp_path,
    ).fit()  # fmt: skip
    assert ">running<" in seen[-1]
    assert "refresh" in seen[-1]
    last = (tmp_path / "report.html").read_text()
    assert ">stopped<" in last
    assert "refresh" not in last


def test_a_run_that_raises_leaves_its_report(tmp_path):
    def fail(run):
        raise KeyError("mine")

    trainer = Trainer(
        MLP(), source(), loss=loss, batch_size=8, epochs=1, callbacks=[fail], workdir=tmp_path
    )
    with pytest.raises(KeyError, match="mine"):
        trainer.fit()
    assert "ended early" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "report.html").mkdir()
    result = Trainer(
        MLP(), source(), loss=loss, batch_size=8, log_every=1, epochs=1, workdir=tmp_path
    ).fit()
    assert result.status == "finished"
    warnings = [r.getMessage() for r in caplog.records if "Report" in r.getMessage()]
    assert len(warnings) == 1
    assert "Training goes on without this writer" in warnings[0]


@pytest.mark.parametrize(
    "values",
    [
        *([], [1.0], [0.0, 0.0], [-3.0, 2e9], [1e-9, 5.0]),
        *([float("nan"), 1.0], [float("inf")] * 3, list(range(1, 5000))),
    ],
)
def test_curves_of_any_values_are_drawn_inside_their_frame(values):
    svg = lines({"train": [(i + 1, float(y)) for i, y in enumerate(values)]}, label="step")
    finite = [y for y in values if np.isfinite(y)]
    assert bool(svg) == bool(finite)
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", "".join(re.findall(r'points="([^"]*)"', svg))):
        assert 0 <= float(x) <= 380
        assert 0 <= float(y) <= 230
    assert "nan" not in svg
    assert len(svg) < 20_000


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1600])
def test_a_browser_shows_it_without_an_error_a_request_or_a_sideways_scroll(run, tmp_path, width):
    probe = """<script>addEventListener("load", () => {
      const seen = {
        width: document.documentElement.scrollWidth, window: innerWidth,
        requests: performance.getEntriesByType("resource").filter(
          (entry) => !entry.name.startsWith("data:")).length,
        images: [...document.images].every((image) => image.naturalWidth > 0),
        smallest: Math.min(...[...document.querySelectorAll("svg text")].map(
          (label) => label.getBoundingClientRect().height))};
      parent.document.body.dataset.seen = JSON.stringify(seen); });</script>"""
    # A window is never narrower than 500 pixels; a frame may be.
    inner = html.escape(run[2].read_text().replace("<main>", probe + "<main>"))
    page = tmp_path / "page.html"
    page.write_text(
        f'<body><iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{inner}">'
    )
    done = subprocess.run(
        [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'user'}",
         "--enable-logging=stderr", "--window-size=1700,1000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["window"] == width
    assert seen["width"] <= width
    assert seen["requests"] == 0
    assert seen["images"]
    assert seen["smallest"] >= 9  # pixels
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
def test_without_a_workdir_nothing_is_written(tmp_path):
    script = (
        "from tests.support.models import MLP, labelled\n"
        "from trainers import Trainer\n"
        "source = labelled(20)\n"
        "result = Trainer(MLP(), source, batch_size=8, eval_source=source).fit()\n"
        "print(result.status)\n"
    )
    root = Path(__file__).parents[3]
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **places, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("finished\n"), done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_it_tells_from_which_steps_the_run_went_on(tmp_path):
    def run(**more):
        return Trainer(
            MLP(),
            source(),
            loss=loss,
            batch_size=8,
            log_every=3,
            epochs=3,
            workdir=tmp_path,
            **more,
        ).fit()

    def told():
        return json.loads((tmp_path / "config.json").read_text())["resumes"]

    run(callbacks=[at(4)])
    assert told() is None
    run(callbacks=[at(11)])
    assert re.fullmatch(r"step 4 at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", told())
    run()
    assert re.fullmatch("step 4 at [^;]*; step 11 at [^;]*", told())
    assert told() in (tmp_path / "report.html").read_text()
    run()  # it is finished: nothing goes on
    assert told().count("step") == 2


def test_an_unreadable_configuration_of_an_earlier_start_is_written_anew(tmp_path):
    options = {"loss": loss, "batch_size": 8, "epochs": 3, "workdir": tmp_path}
    Trainer(MLP(), source(), callbacks=[at(4)], **options).fit()
    (tmp_path / "config.json").write_text('{"resumes": "step')
    Trainer(MLP(), source(), **options).fit()
    assert json.loads((tmp_path / "config.json").read_text())["resumes"].startswith("step 4 at")


class Doubled(nnx.Module):
    """A stage that makes pictures floats and counts its batches."""

    def __init__(self):
        self.batches = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.batches[...] += 1
        assert batch["x"].shape == (5, 4)  # as in training
        return {**batch, "x": 2 * batch["x"], "picture": batch["picture"] / 255, "mine": batch["x"]}


def test_samples_are_as_the_stages_give_them(tmp_path):
    part = source().select(np.arange(20, 40))
    stage = Doubled()
    pipeline = Pipeline(source=part, stages=[stage], batch_size=5)
    Trainer(MLP(), pipeline, loss=loss, epochs=1, workdir=tmp_path).fit()
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("<dt>mine</dt>") == 5
    assert f"{2 * float(part[0]['x'][0]):.4g}, " in page
    assert f"{2 * float(part[19]['x'][0]):.4g}, " in page
    assert "alert(20)" in page  # texts ride along
    assert int(stage.batches[...]) == 0


def test_samples_of_a_view_are_its_own(tmp_path):
    Trainer(
        MLP(), source().select([7, 9]), loss=loss, batch_size=2, epochs=1, workdir=tmp_path
    ).fit()
    page = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"alert\((\d+)\)", page)) == {"7", "9"}
