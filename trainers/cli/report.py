"""`llmgym report RUN...`: one page of a run, or a comparison of several, that opens from disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trainers.cli.options import parse_options


@dataclass(frozen=True)
class Options:
    """Write report.html of a run, or the comparison of several; no script, no network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Run folders; the newest run without one, a comparison of several."""
    out: Path | None = None
    """The page; report.html in the run, or comparison.html beside the first of several."""


def main(argv: Sequence[str]) -> int:
    """Write the page and print its path."""
    options: Options = parse_options(Options, argv, "report")
    from trainers.inference.targets import newest_run
    from trainers.run_dir.record import check_run

    runs = options.runs or (newest_run(),)
    for run in runs:
        check_run(run)
    from trainers.report.page import write_report

    print(write_report(runs, options.out))
    return 0
