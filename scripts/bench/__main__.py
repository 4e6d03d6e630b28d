"""Measure this project against others, one thread, in turns: CPU seconds, memory, shares.

    python -m scripts.bench table                      # make bench: every row, 5 rounds
    python -m scripts.bench axes                       # make bench-axes: 3 rounds
    python -m scripts.bench quick                      # make bench-quick: under 10 minutes
    python -m scripts.bench table --only ragged --rounds 1         # one sitting
    python -m scripts.bench table --only ragged --sides llmgym 9157903 --rounds 1   # no page

A round that is kept in runs/bench/records is not measured again.
"""

import argparse
import sys
import time
from dataclasses import replace

from scripts.bench.measure import take_turns
from scripts.bench.sittings import SITTINGS

ROUNDS = {"table": 5, "axes": 3, "quick": 1}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*ROUNDS])
    parser.add_argument("--only", nargs="+", metavar="SITTING")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="kept under another name")
    parser.add_argument("--rounds", type=int)
    words = parser.parse_args()
    began = time.perf_counter()
    for sitting in SITTINGS:
        if sitting.table != words.table or (words.only and sitting.name not in words.only):
            continue
        if words.sides:
            sides = {name: side for name, side in sitting.sides.items() if name in words.sides}
            sitting = replace(sitting, name=f"{sitting.name}-some", sides=sides)
        take_turns(sitting, words.rounds or ROUNDS[words.table])
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
