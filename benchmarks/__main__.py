"""All benchmarks, one after another, each in a process of its own.

python -m benchmarks [--dataset FOLDER]
"""

import argparse
import subprocess
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: random images")
    dataset = parser.parse_args().dataset
    for module, option in (("loop", "--dataset"), ("rivals", "--dataset"), ("loading", "--mnist")):
        print(f"== {module}", flush=True)
        given = [] if dataset is None else [option, dataset]
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *given], check=True)


if __name__ == "__main__":
    main()
