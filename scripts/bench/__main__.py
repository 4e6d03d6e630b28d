"""Measure this project against others, one thread, in turns: CPU seconds, memory, shares.

    python -m scripts.bench table                      # make bench: every row, 5 rounds
    python -m scripts.bench axes                       # make bench-axes: 3 rounds
    python -m scripts.bench quick                      # make bench-quick: under 10 minutes
    python -m scripts.bench page                       # docs/results/speed.md from what is kept
    python -m scripts.bench table --only ragged --rounds 1             # one sitting, or control
    python -m scripts.bench baseline                   # store the ratios that are kept now
    python -m scripts.bench table --only ragged --sides llmgym 9157903 --rounds 1
        # some sides of it, kept under another name: no page

A round that is kept in runs/bench/records is not measured again while the code is the same. Sides
that wait hold weights and moments: a sitting takes up to 12 GB.
"""

import argparse
import sys
import time
from dataclasses import replace

from scripts.bench import control, page
from scripts.bench.measure import take_turns
from scripts.bench.places import KEPT, product_digest
from scripts.bench.sittings import SITTINGS

CONTROL = "control"
ROUNDS = {"table": 5, "axes": 3, "quick": 1}


def _measure_control(rounds: int) -> None:
    """Measure control where this code was not, by its own rounds."""
    mark = KEPT / "records" / "control-of.txt"
    if mark.is_file() and mark.read_text(encoding="ascii") == product_digest():
        return
    control.measure(rounds)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(product_digest(), encoding="ascii")
    page.write_page()


def measure(words: argparse.Namespace) -> None:
    """Measure what is missing of the sittings that the command line asks for."""
    began = time.perf_counter()
    for sitting in SITTINGS:
        if sitting.table != words.table or (words.only and sitting.name not in words.only):
            continue
        asked = sitting
        if words.sides:
            sides = {name: side for name, side in sitting.sides.items() if name in words.sides}
            asked = replace(sitting, name=f"{sitting.name}-some", sides=sides)
        take_turns(asked, words.rounds or ROUNDS[words.table])
        if not words.sides:
            page.write_page()
    if words.table == "table" and CONTROL in (words.only or [CONTROL]) and not words.sides:
        _measure_control(words.rounds or ROUNDS[words.table])
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)


def main() -> None:
    """Do what the command line asks for.

    Raises:
        SystemExit: with `--check`, a row fell by more than 15 % below the baseline.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*ROUNDS, "page", "baseline"])
    parser.add_argument("--only", nargs="+", metavar="SITTING")
    parser.add_argument("--sides", nargs="+", metavar="SIDE")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--check", action="store_true", help="fail where a row fell by 15 %%")
    words = parser.parse_args()
    if words.table == "baseline":
        page.store_baseline()
    elif words.table == "page":
        page.write_page()
    else:
        measure(words)
        lines = page.fallen(words.table)
        print("\n".join(lines), file=sys.stderr)
        if words.check and lines:
            raise SystemExit(
                f"{len(lines)} rows are more than 15 % below scripts/bench/baseline.json"
            )


if __name__ == "__main__":
    main()
