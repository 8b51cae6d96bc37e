"""All benchmarks, one after another, each in a process of its own.

    python -m benchmarks [--dataset FOLDER] [--quick] [--only NAME ...]

About an hour on two CPU cores, most of it the killed runs; with --quick about five minutes, which
shows that each of them runs and measures nothing.
"""

import argparse
import subprocess
import sys

COMMANDS = {
    "loop": ["loop"],
    "first_step": ["first_step"],
    "mixtures": ["mixtures"],
    "rivals": ["rivals"],
    "reporting": ["reporting"],
    "loading": ["loading"],
    "streaming": ["streaming"],
    "tokens": ["tokens"],
    "damage": ["damage"],
    "kill": ["kill", "--data", "eager"],
    "kill-views": ["kill", "--data", "views"],
    "indexed": ["indexed"],
    "transforms": ["transforms"],
    "kill-indexed": ["kill", "--data", "indexed"],
    "kill-stream": ["kill", "--data", "stream"],
    "kill-packed": ["kill", "--data", "packed"],
}
TAKE_DATASET = {"loop", "rivals", "reporting", "loading"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: random images")
    parser.add_argument("--quick", action="store_true", help="only try them")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, metavar="NAME", default=COMMANDS)
    args = parser.parse_args()
    failed = []
    for name in args.only:
        print(f"== {name}", flush=True)
        module, *options = COMMANDS[name]
        options += ["--quick"] * args.quick
        if args.dataset is not None and name in TAKE_DATASET:
            options += ["--dataset", args.dataset]
        command = [sys.executable, "-m", f"benchmarks.{module}", *options]
        failed += [name] * (subprocess.run(command).returncode != 0)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
