"""Take turns: run the sides of a sitting as processes, one at a time, and keep each round.

A round that is kept is not measured again: runs/bench/records/SITTING.json. It is measured anew
when this project's code, the sitting or a requirements file is another than it was.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from scripts.bench.places import (
    KEPT,
    REQUIREMENTS,
    ROOT,
    VLLM,
    AbsentError,
    interpreter,
    model_folder,
    product_digest,
    tree,
)
from scripts.bench.sittings import Side, Sitting

WORKERS = Path(__file__).parent / "workers"
Record = dict[str, Any]


@final
class Worker:
    """A side's process, which waits between its turns."""

    def __init__(self, name: str, side: Side, sitting: Sitting, log: Path) -> None:
        """Start it.

        Raises:
            AbsentError: what it needs is not on this machine.
        """
        shape = sitting.shape.changed(**side.changes)
        folder = model_folder(shape.model)
        self._name, self._log = name, log
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        roots = dict.fromkeys((tree(side.place), ROOT))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            "TMPDIR": str(self._folder),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        told = shape.as_json(folder=str(folder), **side.options)
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [interpreter(side.place), str(WORKERS / f"{side.worker}.py"), told],
                env=environment,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def _read(self) -> Record:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._log.read_text(encoding="utf-8").strip().splitlines()
            raise AbsentError(f"{self._name} ended; {self._log}: {lines[-1] if lines else ''}")
        return json.loads(line)

    def ready(self) -> None:
        """Wait until it has warmed up.

        Raises:
            AbsentError: it ended instead.
        """
        self._read()

    def turn(self) -> Record:
        """Let it run one iteration; return the record of that.

        Raises:
            AbsentError: it ended instead.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def digest_of(sitting: Sitting) -> str:
    """Return what a sitting's records are of: its sides, its requirements, this project's code."""
    parts = [json.dumps(asdict(sitting), sort_keys=True), product_digest()]
    for place in sorted({side.place for side in sitting.sides.values()}):
        listed = REQUIREMENTS / f"{place}.txt"
        parts.append(listed.read_text(encoding="utf-8") if listed.is_file() else place)
    parts.append(os.environ.get("LLMGYM_VLLM_PYTHON", "") if VLLM in parts else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def record_file(name: str) -> Path:
    """Return where the rounds of a sitting are kept."""
    return KEPT / "records" / f"{name}.json"


def kept(name: str) -> dict[str, Any]:
    """Return what is kept of a sitting; nothing where it was never measured."""
    path = record_file(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rounds": []}


def _keep(name: str, record: Mapping[str, Any]) -> None:
    path = record_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
    aside.replace(path)


def _started(sitting: Sitting, skipped: dict[str, str]) -> dict[str, Worker]:
    """Start every side and let it warm up, one after another; those that cannot are `skipped`."""
    workers: dict[str, Worker] = {}
    logs = KEPT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number, (name, side) in enumerate(sitting.sides.items()):
        worker = None
        try:
            worker = Worker(name, side, sitting, logs / f"{sitting.name}-{number}.log")
            worker.ready()
            workers[name] = worker
        except AbsentError as error:
            skipped[name] = str(error)
            print(f"  {name}: skipped: {error}", file=sys.stderr)
            if worker is not None:
                worker.close()
    return workers


def _round(workers: Mapping[str, Worker], number: int) -> dict[str, Record]:
    names = list(workers)[:: 1 if number % 2 == 0 else -1]
    return {name: workers[name].turn() for name in names}


def take_turns(sitting: Sitting, rounds: int) -> None:
    """Measure what is missing of a sitting's rounds."""
    digest, record = digest_of(sitting), kept(sitting.name)
    if record.get("digest") != digest:
        record = {"digest": digest, "product": product_digest(), "rounds": []}
    missing = rounds - len(record["rounds"])
    if missing <= 0:
        return
    began, skipped = time.perf_counter(), {}
    print(f"{sitting.name}: {missing} of {rounds} rounds", file=sys.stderr)
    workers = _started(sitting, skipped)
    try:
        for number in range(len(record["rounds"]), rounds):
            load = os.getloadavg()[0]
            sides = _round(workers, number)
            record["rounds"].append({"sides": sides, "load": load, "time": time.time()})
            record["skipped"] = skipped
            record["minutes"] = (time.perf_counter() - began) / 60
            _keep(sitting.name, record)
            times = ", ".join(f"{name} {side['cpu']:.2f}" for name, side in sides.items())
            print(f"  round {number + 1}: CPU s: {times}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
