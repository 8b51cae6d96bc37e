"""One training script for one device or a pod; how it is launched is in README.md, beside it.

    python examples/pod/train.py                                             # on this machine
    python examples/pod/local.py --processes 2 --devices 1 examples/pod/train.py    # as two
    python examples/pod/train.py --dataset ylecun/mnist --workdir gs://my-bucket/mnist

Test accuracy to expect, on any number of devices: digits, which come with scikit-learn, 99 %, in
15 s on two CPU cores; MNIST from the Hub 99.3 %, in 10 min. Every process runs this script. The
same command goes on where the last one ended, also on another number of machines.

Exit status: 0 when the run is finished; 75 when it was preempted, and a scheduler is to start it
again; 130 after Ctrl-C; 1 where the loss stopped being finite.
"""

import argparse
import sys
from pathlib import Path

import jax
import optax
from flax import nnx

import trainers
from datarax import Pipeline

sys.path.append(str(Path(__file__).resolve().parents[1]))
from mnist import CNN, load, shift

STATUS = {"finished": 0, "preempted": 75, "stopped": 130, "diverged": 1}
"""Exit status by `result.status`. 75 is EX_TEMPFAIL of sysexits.h: try again."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", help="digits, a Hub name or a folder")
    parser.add_argument("--steps", type=int, help="default: 360 for digits, 2800 otherwise")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the order")
    parser.add_argument("--batch-size", type=int, default=128, help="on all devices together")
    parser.add_argument("--shards", type=int, default=64, help="the most devices there may be")
    parser.add_argument("--sharding", choices=["replicate", "fsdp"], default="replicate")
    parser.add_argument("--workdir", default="runs/pod", help="a directory that all machines see")
    args = parser.parse_args()

    # Before anything else of JAX: joins the processes, and does nothing where there is one.
    trainers.initialize()
    first = jax.process_index() == 0
    if first:
        print(f"{jax.process_count()} processes, {jax.device_count()} devices", flush=True)

    # Each process opens the same data, and reads the rows of its own devices' shards.
    train, test = load(args.dataset, args.seed)
    pipeline = Pipeline(
        source=train,
        stages=[shift],
        batch_size=args.batch_size,
        shards=args.shards,
        rngs=nnx.Rngs(args.seed),
    )
    steps = args.steps or (360 if args.dataset == "digits" else 2800)
    rate = optax.cosine_onecycle_schedule(steps, peak_value=4e-3)
    rngs = nnx.Rngs(params=args.seed, dropout=args.seed + 1)
    result = trainers.Trainer(
        CNN(train.element_spec()["image"].shape[0], rngs=rngs),
        pipeline,
        optimizer=optax.adamw(rate, weight_decay=1e-2),
        eval_source=test,
        steps=steps,
        log_every=min(100, len(pipeline)),
        # A machine that vanishes without a word costs the steps since the last checkpoint.
        checkpoint=trainers.Checkpoints(every_minutes=5),
        sharding=args.sharding,
        workdir=args.workdir,
    ).fit()

    if first:
        print(f"{result.status} after {result.step} of {steps} steps")
        if result.status == "finished":
            print(f"test accuracy: {result.metrics['eval/accuracy']:.2%}")
    return STATUS[result.status]


if __name__ == "__main__":
    sys.exit(main())
