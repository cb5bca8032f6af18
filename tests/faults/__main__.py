"""`make test-faults`: a mesh in use while everything around it fails, and what must hold, checked.

    python -m tests.faults --minutes 3 --seed 7

The same seed does the same harm in the same order; what clients do meanwhile depends on the machine.
"""

import argparse
import random
import sys

from tests.faults.run import Run
from tests.netns.lab import FASTPATH_DIR, missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test-faults")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--only", help="these kinds of faults alone, separated by commas", default="")
    said = parser.parse_args()
    if why_not := missing():
        sys.exit(f"test-faults: not possible here: {why_not}")
    if not (FASTPATH_DIR / "overmesh-fastpath").exists():
        sys.exit("test-faults: the fastpath is not built: cargo build --release in fastpath/")
    only = tuple(filter(None, said.only.split(",")))
    return 0 if Run(said.minutes * 60, said.seed, only=only).judge() else 1


if __name__ == "__main__":
    sys.exit(main())
