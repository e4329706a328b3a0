"""Replays one history, or looks for one that fails.

python -m tests.simulation --seed 17             its log, and what fails
python -m tests.simulation --seed 0 --count 1000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.world import Simulation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--count", type=int, default=1, help="of histories")
    given = parser.parse_args(argv)
    simulation, began, failed = Simulation(), time.process_time(), 0
    alone = given.count == 1
    with simulation.installed():
        for seed in range(given.seed, given.seed + given.count):
            try:
                simulation.play(seed, verbose=alone)
            except AssertionError as error:
                failed += 1
                print(f"seed {seed}: {error}")
            if alone:
                print(*simulation.lines, sep="\n")
    took_s = time.process_time() - began
    print(
        f"{given.count} histories, {failed} failed, {took_s:.1f} s of CPU, "
        f"{60 * given.count / took_s:.0f} a minute"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
