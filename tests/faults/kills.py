"""Two ranks of a run on DeepSpeed, one of which is killed again and again at random moments.

    .venv/bin/python -m tests.faults.kills [--kills 20] [--seed 0]

Each rank is a process of its own. After a kill the other must end by itself, in time, and the next
start resumes. In the end the run must be, to the last bit, the one that nothing was done to. Every
second kill waits for a save and strikes inside it; of the others, every second one waits until an
iteration is done. About 8 CPU minutes.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from tests import tiny
from tests.distributed.ranks import free_port
from tests.processes import process
from tests.resume.trainee import differences, left_behind
from trainers.checkpoint.loading import find, load
from trainers.checkpoint.manifest import published
from trainers.loggers.jsonl import JsonlLogger
from trainers.run_dir.record import read_status
from trainers.runner.run import run

PLACES = {
    "ZeRO 1": {"backend.zero.stage": 1},
    "ZeRO 2, optimizer offloaded": {"backend.zero.stage": 2, "backend.zero.offload": "optimizer"},
    "ZeRO 3": {"backend.zero.stage": 3},
    "ZeRO 3, all offloaded": {"backend.zero.stage": 3, "backend.zero.offload": "params"},
}
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
TIMEOUT = 30.0
"""Seconds that a rank waits for the others: `backend.timeout_seconds`."""
GRACE = 10.0
"""Seconds beyond it: for exit reports, and for the exit of a process on a busy machine."""
HEADER = ("place", "killed", "missed in", "left a draft", "other ended after s", "goes on from")
MOMENTS = ("training", "save", "any time", "save")
ITERATIONS = 6
CHANGES = {
    "ppo.num_iterations": ITERATIONS,
    "ppo.num_epochs": 1,
    "ppo.kl_controller": "adaptive",
    "ppo.kl_horizon": 20.0,
    "ppo.kl_target": 0.01,
    "ppo.reward_normalize": "running",
    "eval.num_tasks": 4,
    "eval.every": 2,
    "checkpoint.every": 1,
    "backend.name": "deepspeed",
    "backend.timeout_seconds": TIMEOUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What came of one kill.

    Attributes:
        place: of `PLACES`.
        rank: that was killed.
        phase: in which the other rank missed it.
        in_save: whether a checkpoint was being written, and is left as a draft.
        seconds: until the other rank had ended.
        resumes_at: the iteration of the checkpoint that is there; 0: none was published.
    """

    place: str
    rank: int
    phase: str
    in_save: bool
    seconds: float
    resumes_at: int


def train(variables, words, said):
    """Run, or go on, as one rank; what it says goes to the file `said`."""
    os.environ |= variables
    with open(said, "a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    config = tiny.run_settings(words["model.path"], words["run.dir"], **words)
    run(config, reward=tiny.letters, resume=True, loggers=[JsonlLogger()])


class Pair:
    """Starts two ranks of a run, in a folder of its own."""

    def __init__(self, place, folder, model, **changes):
        self.place, self.folder = place, folder
        self.run, self.checkpoints = folder / "a", folder / "a" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        user = folder / "user.json"
        user.write_text(json.dumps(SHARD_ALL), encoding="utf-8")
        self.words = {**CHANGES, **PLACES[place], "run.dir": str(folder), "model.path": str(model)}
        if PLACES[place]["backend.zero.stage"] == 3:
            self.words["backend.zero.config"] = str(user)
        self.words |= changes

    def start(self):
        """Start both ranks."""
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        ranks = []
        for rank in range(2):
            variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            said = str(self.folder / f"said_{rank}")
            ranks.append(process(train, variables, self.words, said))
            ranks[-1].start()
        return ranks

    def finish(self, ranks, seconds=240):
        """Wait until both ranks have ended well."""
        for rank in ranks:
            rank.join(timeout=seconds)
        assert [rank.exitcode for rank in ranks] == [0, 0], self.words_said()

    def words_said(self):
        """The last words of each rank."""
        return [file.read_text()[-2000:] for file in sorted(self.folder.glob("said_*"))]

    def drafts(self):
        """{(name, changed at)} of checkpoints that are being written, or were when a rank died."""
        found = set()
        for draft in self.checkpoints.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # it has just been published
                found.add((draft.name, draft.stat().st_mtime_ns))
        return found

    def newest(self):
        """The iteration of the newest published checkpoint; 0 if there is none."""
        there = published(self.checkpoints, "ppo")
        return max((int(one.name.split("_")[1].split(".")[0]) for one in there), default=0)

    def num_lines(self):
        """How many figures were logged so far."""
        file = self.run / "metrics.jsonl"
        return len(file.read_bytes().splitlines()) if file.exists() else 0

    def attempts(self):
        """The folders of logs, one a start."""
        folders = [*(self.run / "logs").glob("attempt_*")]
        return sorted(folders, key=lambda one: int(one.name.split("_")[1]))

    def _await(self, process, rng, when, span):
        """Wait for a random moment, or until the process has ended; see `kill`."""
        left, lines, skipped = self.drafts(), self.num_lines(), rng.randrange(3)
        seen = set()
        if when == "any time":
            process.join(timeout=rng.uniform(0, span))
        elif when == "training":
            while process.exitcode is None and self.num_lines() == lines:
                process.join(timeout=0.002)
            process.join(timeout=rng.uniform(0, 1))
        else:
            while process.exitcode is None and len(seen) <= skipped:
                process.join(timeout=0.002)
                seen |= {name for name, _ in self.drafts() - left}
            process.join(timeout=rng.uniform(0, 0.03))

    def kill(self, ranks, rng, when, span):
        """Kill a random rank at a random moment; None: both had finished.

        Args:
            when: at `any time` of the next `span` seconds, in `training`, or in a `save`.
        """
        victim = rng.randrange(2)
        other, begun, left = ranks[1 - victim], len(self.attempts()), self.drafts()
        self._await(ranks[victim], rng, when, span)
        before, at = self.newest(), time.monotonic()
        if ranks[victim].exitcode is not None:
            self.finish(ranks)
            return None
        ranks[victim].kill()
        other.join(timeout=TIMEOUT + GRACE)
        seconds = time.monotonic() - at
        assert other.exitcode is not None, f"rank {1 - victim} hangs"
        ranks[victim].join()
        done = read_status(self.run).get("status") == "finished" if self.run.exists() else False
        assert other.exitcode == 1 or (other.exitcode == 0 and done), self.words_said()
        found = find(self.checkpoints, "ppo")
        number = 0 if found is None else found.number
        assert number >= before, f"{before} was published, {number} is found"
        assert found is None or found.passed_over == ()
        return Kill(
            place=self.place,
            rank=victim,
            phase=self._phase(begun, 1 - victim, is_done=number == ITERATIONS),
            in_save=not self.drafts() <= left,
            seconds=seconds,
            resumes_at=number,
        )

    def _phase(self, begun, other, *, is_done):
        """The phase in which a rank missed the other; outside of training it says none."""
        report = self.attempts()[-1] / f"rank_{other}.exit_report" if self.attempts() else None
        if len(self.attempts()) == begun or report is None or not report.exists():
            return "the end" if is_done else "the start"
        return json.loads(report.read_text())["phase"]

    def left_behind(self):
        """What must not depend on kills: states of both ranks, figures, exported models."""
        own = dict(load(find(self.checkpoints, "ppo").path, 1).own)
        session = {key: value for key, value in own["session"].items() if key != "loggers"}
        models = {}
        for part in ("model", "critic", "best"):
            with (self.run / part / "model.safetensors").open("rb") as stream:
                models[part] = file_digest(stream, "sha256").hexdigest()
        rank_1 = {**own, "session": session}
        return {"rank 0": left_behind(self.folder), "rank 1": rank_1, "models": models}


def assert_same(one, other):
    """Check that two runs ended equal to the last bit."""
    assert differences(one.left_behind(), other.left_behind()) == []


def survived(place, count, folder, model, rng):
    """Kill a run `count` times, resume it each time, and hold its end against a quiet one."""
    quiet = Pair(place, folder / "quiet", model)
    began = time.monotonic()
    quiet.finish(quiet.start())
    span = time.monotonic() - began
    struck = Pair(place, folder / "struck", model)
    kills = []
    while len(kills) < count:
        when = MOMENTS[len(kills) % len(MOMENTS)]
        kill = struck.kill(struck.start(), rng, when, span)
        if kill is not None:
            kills.append(kill)
        else:
            assert_same(struck, quiet)
        if kill is None:
            shutil.rmtree(struck.run)
    struck.finish(struck.start())
    assert_same(struck, quiet)
    return kills


def stopped(place, rank, folder, model):
    """Ask one rank to stop after its first iteration; hold the resumed run against a quiet one."""
    quiet = Pair(place, folder / "quiet", model)
    quiet.finish(quiet.start())
    asked = Pair(place, folder / "asked", model, **{"checkpoint.every": 0})
    ranks = asked.start()
    figures = asked.run / "metrics.jsonl"
    while not (figures.exists() and "loss/total" in figures.read_text()):
        assert ranks[rank].exitcode is None, asked.words_said()
        ranks[rank].join(timeout=0.01)
    os.kill(ranks[rank].pid, signal.SIGTERM)
    asked.finish(ranks)
    status = read_status(asked.run)
    assert status["status"] == "interrupted"
    assert status["iteration"] < ITERATIONS
    (only,) = published(asked.checkpoints)
    manifest = json.loads((only / "manifest.json").read_text())
    assert (asked.newest(), manifest["sequence"]) == (status["iteration"], 1), "saved once"
    asked.finish(asked.start())
    assert read_status(asked.run)["status"] == "finished"
    assert_same(asked, quiet)


def measure(count, seed, folder):
    """Share kills out over all places; the model is made in `folder`."""
    model, rng = tiny.save_model(folder / "model"), random.Random(seed)
    kills = []
    for number, place in enumerate(PLACES):
        share = len(range(number, count, len(PLACES)))
        name = re.sub(r"\W+", "_", place)
        kills += survived(place, share, folder / name, model, rng) if share else []
    return kills


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = measure(options.kills, options.seed, Path(folder))
    print(f"| {' | '.join(HEADER)} |")  # noqa: T201 - the result
    print("| --- " * len(HEADER) + "|")  # noqa: T201
    for one in kills:
        row = [one.place, one.rank, one.phase, "yes" if one.in_save else "", f"{one.seconds:.1f}"]
        print("|", " | ".join(map(str, [*row, one.resumes_at])), "|")  # noqa: T201
    print(f"\n{len(kills)} kills, {Counter(one.phase for one in kills)}")  # noqa: T201


if __name__ == "__main__":
    main()
