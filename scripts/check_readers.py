"""Check every id that a reader lists, in the environment where its library is installed.

Run: python scripts/check_readers.py reasoning_gym      (--episodes N; exit code 1 on a failure)
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

import llmgym
from llmgym.adapters import READERS
from llmgym.check import check

SIZE = 30
"""Tasks of each split that are compared; each set may take half a second per task."""


def main(argv: Sequence[str]) -> int:
    """Print a line per id, and how many keep the contract."""
    parser = argparse.ArgumentParser(description="Check every id that a reader lists.")
    parser.add_argument("namespace", choices=[reader.namespace for reader in READERS])
    parser.add_argument("--episodes", type=int, default=8, help="seeds per id")
    parser.add_argument("--only", default="", help="ids that contain this")
    options = parser.parse_args(argv)
    ids = [id for id in llmgym.ids(options.namespace) if options.only in id]
    failed = 0
    for id in ids:
        began = time.monotonic()
        held_out = {"split": "test", "size": SIZE}
        lines = check(id, episodes=options.episodes, held_out=held_out, size=SIZE)
        failed += bool(lines)
        print(f"{id}: {'; '.join(lines) or 'ok'} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{len(ids) - failed} of {len(ids)} ids keep the contract")
    return 1 if failed or not ids else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
