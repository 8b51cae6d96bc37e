"""Kills a training run at random moments, again and again, and compares how it ends.

    python -m benchmarks.kill [--kills 100] [--seed 0] [--data KIND]

A process of its own trains a model with Dropout, BatchNorm and Adam on a shuffled source: held in
memory (`eager`), a mixture of a balanced view of a fold of a selection and of a weighted view of a
split (`views`), pictures of many sizes that are read by number and cut by `random_resized_crop`
(`indexed`), or streamed from files and read ahead (`stream`; `transformed` with a transform that
draws; `grain` from an `IterDataset` of Grain). It has a stage that draws random numbers, an average
of the parameters, evaluation, callbacks and a checkpoint every few steps. It gets SIGKILL or
SIGTERM: some while it starts and compiles, some at any moment of the training, some while a
checkpoint is being written. It is started again until it is finished, and then everything it leaves
must be that of a run nobody disturbed, bit for bit: the variables, the optimizer's state, the
history, the stream's position, and `metrics.jsonl` but for its times. With `packed` it is a
language model on a shuffled stream of packed rows. Five to ten seconds a kill on two CPU cores.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 1003  # of the training data: the last batch of an epoch is a short one


def train(workdir: Path, steps: int, data: str) -> None:
    """Trains to the end, or until a signal comes; at the end, writes `result.json`."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from benchmarks.tokens import Decoder
    from datarax import MemorySource, MemorySourceConfig, Pipeline
    from trainers import Checkpoints, Trainer, every
    from trainers.callbacks import best_so_far, early_stopping

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(16, 64, rngs=rngs)
            self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.out = nnx.Linear(64, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))

    def jitter(batch, key):
        noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(key)
        return {**batch, "x": batch["x"] + 0.1 * noise}

    def loss(model, batch):
        logits = model(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses, {"logits": logits}

    def note(run):
        run.history[-1]["norm"] = float(optax.tree.norm(nnx.state(run.model(), nnx.Param)))

    sources = {
        "eager": lambda: MemorySource(MemorySourceConfig(shuffle=True, seed=3), points(ROWS, 0)),
        "views": viewed,
        "indexed": lambda: indexed(workdir.parent / "files"),
        "stream": lambda: streamed(workdir.parent / "files"),
        "transformed": lambda: streamed(workdir.parent / "files", transform=noisy),
        "grain": grained,
        "packed": packed,
    }
    model: nnx.Module = Model(nnx.Rngs(params=0, dropout=1))
    stages, own, evaluated = [jitter], loss, points(515, 1)
    if data == "packed":
        model = Decoder(50, 32, 16, 1, nnx.Rngs(0))
        stages, own, evaluated = [], None, packed().collect_to_array(num_records=100)
    result = Trainer(
        model,
        Pipeline(source=sources[data](), stages=stages, batch_size=32, rngs=nnx.Rngs(2)),
        loss=own,
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
        eval_source=MemorySource(MemorySourceConfig(), evaluated),
        steps=steps,
        log_every=7,
        eval_every=20,
        ema=0.99,
        callbacks=[best_so_far("eval/loss", mode="min"), every(14, note), early_stopping()],
        checkpoint=Checkpoints(every=3, keep=2, best=("eval/loss", "min")),
        workdir=workdir,
    ).fit()
    if result.status != "preempted":
        leaves = jax.tree.leaves_with_path((nnx.state(result.model), nnx.state(result.ema)))
        sums = {
            jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
            for path, leaf in _without_keys(leaves)
        }
        end = {"arrays": sums, "history": result.history, "metrics": result.metrics}
        end |= {"status": result.status, "step": result.step, "best": result.best}
        (workdir / "result.json").write_text(json.dumps(end, indent=1))


def points(n: int, seed: int) -> dict[str, Any]:
    """Returns `x` float32 `(n, 16)` and `label` int32 `(n,)`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 16)).astype(np.float32)
    return {"x": x, "label": (x[:, :5] + rng.normal(size=(n, 5))).argmax(1).astype(np.int32)}


def write_files(folder: Path, data: Any) -> None:
    """Writes a dataset's Parquet files, of different lengths."""
    start = 0
    folder.mkdir(parents=True)
    for number, stop in enumerate((40, 200, 201, 500, 640, 777, ROWS)):
        data.select(range(start, stop)).to_parquet(folder / f"train-{number}.parquet")
        start = stop


def noisy(record: dict[str, Any], rng: Any) -> dict[str, Any]:
    """Adds noise to a record; another one in each epoch."""
    return record | {"x": (record["x"] + 0.1 * rng.normal(size=16)).astype("float32")}


def streamed(folder: Path, **fields: Any) -> Any:
    """Returns a shuffled stream of those files: a window is a third of an epoch."""
    import datasets

    from datarax import HFStreamingSource

    rows = datasets.load_dataset(str(folder), split="train", streaming=True)
    fields |= {"shuffle": True, "seed": 3, "shuffle_buffer_size": 300}
    return HFStreamingSource.from_dataset(rows, **fields)


def grained() -> Any:
    """Returns a stream of the same rows, in an order of Grain's."""
    import grain

    from datarax import IterableSource

    data = points(ROWS, 0)
    rows = grain.MapDataset.range(ROWS).seed(3).shuffle()
    rows = rows.map(lambda row: {name: column[row] for name, column in data.items()})
    return IterableSource(rows.to_iter_dataset())


def packed() -> Any:
    """Returns a shuffled stream of packed rows, of documents of 0 to 40 tokens."""
    import datasets
    import numpy as np

    from datarax import HFStreamingSource
    from datarax.tokens import Packer

    rng, packer = np.random.default_rng(0), Packer(32, end_id=0)
    documents = [rng.integers(1, 50, n).tolist() for n in rng.integers(0, 41, ROWS)]
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    dataset = datasets.Dataset.from_dict({"input_ids": documents}, features=features)
    rows = dataset.to_iterable_dataset(num_shards=7).map(
        packer, batched=True, batch_size=100, features=packer.features
    )
    return HFStreamingSource.from_dataset(rows, shuffle=True, seed=3, shuffle_buffer_size=300)


def viewed() -> Any:
    """Returns a mixture of two views of one source, whose weights change."""
    import numpy as np

    from datarax import MemorySource, MemorySourceConfig, MixedSource

    source = MemorySource(MemorySourceConfig(shuffle=True, seed=3), points(ROWS, 0))
    training, _ = source.select(slice(20, None)).fold(0, of=5, stratify="label")
    rest, _ = source.split(0.3, stratify="label")
    views = [training.balanced("label"), rest.weighted(np.arange(len(rest)))]
    return MixedSource(views, [(0, [2, 1]), (1_500, [1, 1])])


def pictures() -> Any:
    """Returns a dataset of pictures of many sizes, brighter on the side that the label names."""
    import datasets
    import numpy as np
    import PIL.Image

    rng, columns = np.random.default_rng(0), {"image": [], "label": []}
    for label in rng.integers(0, 5, ROWS).tolist():
        height, width = rng.integers(8, 40, 2)
        pixels = rng.integers(0, 128, (height, width), np.uint8)
        pixels[:, label * width // 5 :] += 100
        columns["image"].append(PIL.Image.fromarray(pixels))
        columns["label"].append(label)
    features = {"image": datasets.Image(), "label": datasets.Value("int32")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def indexed(folder: Path) -> Any:
    """Returns a shuffled source of those pictures by number, cut at random."""
    import numpy as np

    from datarax import HFIndexedConfig, HFIndexedSource
    from datarax.transforms import chain, random_resized_crop

    def flat(record):
        return {"x": np.float32(record["image"].ravel() / 255), "label": record["label"]}

    return HFIndexedSource(
        HFIndexedConfig(
            name=str(folder),
            split="train",
            shuffle=True,
            seed=3,
            transform=chain(random_resized_crop(4, mode="L", flip=0.5), flat),
        )
    )


def _without_keys(leaves):
    import jax

    for path, leaf in leaves:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        yield path, jax.random.key_data(leaf) if is_key else leaf


# --- killing -------------------------------------------------------------------------------------


class Moments:
    """Chooses when to send which signal, and counts what it hit.

    Args:
        seed: Of the random choices.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()

    def strike(self, process: subprocess.Popen, workdir: Path) -> bool:
        """Signals the process at a random moment; returns False where it had ended before."""
        moment = self._random.choices(["starting", "training", "saving"], [2, 4, 4])[0]
        number = self._random.choices([signal.SIGKILL, signal.SIGTERM], [7, 3])[0]
        if moment == "starting":
            self._sleep(process, 5.0)
        else:
            before = _saved(workdir)
            _until(process, lambda: _saved(workdir) != before)
            self._sleep(process, 1.5)
            if moment == "saving":
                _until(process, lambda: _being_written(workdir))
                self._sleep(process, 0.03)
        if process.poll() is not None:
            return False
        writing = number == signal.SIGKILL and _being_written(workdir)
        process.send_signal(number)
        process.wait()
        where = "while saving" if writing else f"while {moment}" * (moment == "starting")
        self.counts[f"{number.name} {where}".strip()] += 1
        return True

    def _sleep(self, process, most):
        end = time.monotonic() + self._random.uniform(0, most)
        _until(process, lambda: time.monotonic() > end)


def _until(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.002)


def _saved(workdir: Path) -> set[str]:
    return {path.name for path in workdir.glob("checkpoints/*") if path.name.isdigit()}


def _being_written(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*tmp*"))


# --- comparing -----------------------------------------------------------------------------------


def differences(workdir: Path, other: Path) -> list[str]:
    """Returns what two finished runs left that is not the same."""
    found = []
    looks = {"result": _result, "metrics.jsonl": _rows, "checkpoint": _checkpoint}
    for what, look in looks.items():
        one, two = look(workdir), look(other)
        names = one.keys() | two.keys()
        found += [f"{what}: {name}" for name in names if one.get(name) != two.get(name)]
    return sorted(found)


def _result(workdir):
    return json.loads((workdir / "result.json").read_text())


def _rows(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["time"]
    return {f"line {i}: step {row['step']}": row for i, row in enumerate(rows)}


def _checkpoint(workdir):
    from trainers.workdir.store import Store

    found = {}
    for place in ("checkpoints", "best"):
        store = Store(workdir / place)
        step = store.steps()[-1]
        data, run = store.read(step)
        arrays = store.restore(step, {"model": None, "training": None}, run)
        found |= {f"{place} {name}": value for name, value in run.items()} | {place: data}
        for name, value in _flat(arrays):
            found[f"{place} {name}"] = value.tobytes()
        store.close()
    return found


def _flat(tree):
    import jax

    for path, leaf in jax.tree.leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def _start(workdir: Path, args: argparse.Namespace) -> subprocess.Popen:
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "error", "-m", "benchmarks.kill", "--data", args.data]
    command += ["--steps", str(args.steps), "--workdir", str(workdir)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    with (workdir / "output").open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def _ends_well(process: subprocess.Popen, workdir: Path) -> None:
    if process.wait() not in (0, -signal.SIGKILL, -signal.SIGTERM):
        output = (workdir / "output").read_text()[-3000:]
        raise SystemExit(f"The run in {workdir} ended with {process.returncode}:\n{output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=120, help="steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    kinds = ["eager", "views", "indexed", "stream", "transformed", "grain", "packed"]
    parser.add_argument("--data", choices=kinds, default="eager")
    parser.add_argument("--quick", action="store_true", help="two kills: only to try it")
    parser.add_argument("--keep", type=Path, help="a folder for the runs' workdirs")
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)  # of the run to be killed
    args = parser.parse_args()
    if args.workdir is not None:
        return train(args.workdir, args.steps, args.data)

    args.kills = 2 if args.quick else args.kills
    root = args.keep or Path(tempfile.mkdtemp(prefix="datarax-kill-"))
    if args.data in ("stream", "transformed"):
        import datasets

        write_files(root / "files", datasets.Dataset.from_dict(points(ROWS, 0)))
    elif args.data == "indexed":
        write_files(root / "files", pictures())
    begun, moments, different = time.time(), Moments(args.seed), []
    whole = root / "whole"
    process = _start(whole, args)
    _ends_well(process, whole)
    print(f"undisturbed run: {time.time() - begun:.1f} s", flush=True)
    runs = 0
    while sum(moments.counts.values()) < args.kills:
        workdir, finished, kills = root / f"run{runs}", False, 0
        if runs % 2 == 0:  # every other one compiles anew
            shutil.copytree(whole / "compilation", workdir / "compilation")
        while not finished:
            process = _start(workdir, args)
            struck = sum(moments.counts.values()) < args.kills and moments.strike(process, workdir)
            kills += struck
            _ends_well(process, workdir)
            finished = (workdir / "result.json").exists()
        runs += 1
        found = differences(whole, workdir)
        different += found
        print(f"run {runs}: {kills} kills, {found or 'as the undisturbed run'}", flush=True)
        if not found and args.keep is None:
            shutil.rmtree(workdir)
    for name, count in sorted(moments.counts.items()):
        print(f"{count:5} {name}")
    total = sum(moments.counts.values())
    seconds = time.time() - begun
    print(f"{total} kills in {runs} runs, {seconds:.0f} s: {len(different)} differences")
    if not different and args.keep is None:
        shutil.rmtree(root)
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
