"""Exit reports: why a rank ended, in a file next to its log, and one message from all of them."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from trainers.distributed.collectives import phase_of
from trainers.redaction.redact import redact
from trainers.redaction.text_files import write

NO_ANSWER = re.compile(r"NCCL|[Cc]onnection (closed|reset|refused|was)|Broken pipe|[Tt]imed? ?out")
"""What an error of torch.distributed says where another rank did not answer."""
OF_GLOO = re.compile(r"/gloo/|monitoredBarrier")
"""What its errors alone say, the file of its source: they are plain ones, as those of a tool."""
TIMED_OUT = re.compile(r"[Tt]imed? ?out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """Why a rank ended.

    Attributes:
        phase: what it was doing.
        error: the first line of its error, with its class.
        is_cause: False where another rank did not answer it.
        is_told: whether the one message is said already, by who wrote this.
    """

    phase: str
    error: str
    is_cause: bool
    is_told: bool = False

    @classmethod
    def of(cls, error: Exception) -> "ExitReport":
        """Make it of an error."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        message = str(error)
        lost = isinstance(error, dist.DistError) and NO_ANSWER.search(message) is not None
        lost = lost or (type(error) is RuntimeError and OF_GLOO.search(message) is not None)
        return cls(phase=phase_of(error), error=text, is_cause=not lost)


def write_exit_report(logs: Path, rank: int, report: ExitReport) -> None:
    """Write the exit report of a rank, complete or not at all; on a full disk there is none."""
    file = logs / f"rank_{rank}.exit_report"
    body = asdict(report) | {"error": redact(report.error)}
    with suppress(OSError):  # what ended the rank must not be hidden by that
        write(file, json.dumps(body))


def read_exit_reports(logs: Path) -> dict[int, ExitReport]:
    """Return the exit reports that can be read now, by rank."""
    reports = {}
    for file in logs.glob("rank_*.exit_report"):
        rank = int(file.stem.removeprefix("rank_"))
        with suppress(OSError, ValueError):  # a file server shows it late, or half of it
            reports[rank] = ExitReport(**json.loads(file.read_text(encoding="utf-8")))
    return dict(sorted(reports.items()))


def summarize_exits(
    reports: Mapping[int, ExitReport], hosts: Sequence[str], logs: Path, timeout_seconds: float
) -> str:
    """Return a message: which rank ended the others, how, and where its log is.

    Args:
        reports: of the ranks; one without a report is lost.
        hosts: of each rank.
        logs: the folder of their logs.
        timeout_seconds: how long they were waited for.
    """
    causes = {rank: report for rank, report in reports.items() if report.is_cause}
    silent = [rank for rank in range(len(hosts)) if rank not in reports]
    first = next(iter(reports.values()))
    ends = "Continue with the same command and --resume."
    if causes:
        rank, report = next(iter(causes.items()))
        return (
            f"rank {rank} ({hosts[rank]}) failed in {report.phase}: {report.error}."
            f"{_log('Its log', logs, rank)}\n{ends}"
        )
    if not silent:
        return (
            f"ranks lost each other in {first.phase}: {first.error}. Look at the network.\n{ends}"
        )
    who = ", ".join(f"{rank} ({hosts[rank]})" for rank in silent[:4])
    who += f" and {len(silent) - 4} more" * (len(silent) > 4)
    late = any(TIMED_OUT.search(report.error) for report in reports.values())
    how = f"did not finish {first.phase} within {timeout_seconds:g} s" if late else ""
    how = how or f"died in {first.phase}: its connection was closed"
    return (
        f"rank {who} {how}; the other {len(reports)} stopped."
        f"{_log('Last words', logs, silent[0])}\n{ends}"
    )


def _log(what: str, logs: Path, rank: int) -> str:
    """Point to the log of a rank, and say if it is empty."""
    file = logs / f"rank_{rank}.log"
    has_words = file.exists() and file.stat().st_size > 0
    return f" {what}: {file}{'' if has_words else ' (empty)'}"
