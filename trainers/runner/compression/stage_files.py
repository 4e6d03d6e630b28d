"""The results of the stages of a run, each in a file that is written once and in one step.

    stages/NAME.json    {"inputs": {...}, "result": {...}, "seconds": ...}

`inputs` names what the result depends on, the digest of the stage before included. A second call
reads the result; with other inputs it is refused, so that no result is mixed with another's.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from trainers.errors import CheckpointError, ConfigError
from trainers.redaction.text_files import write


@final
class StageFiles:
    """The stages of one run, in the order in which they are asked for.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "stages"
        self._before = ""
        self._folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, name: str) -> bool:
        """Tell whether a stage has a result."""
        return self._file(name).is_file()

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the result of a stage: that of its file, or a new one.

        Args:
            name: of the stage.
            inputs: what the result depends on, as JSON has it.
            compute: makes the result, as JSON has it; what else it writes is there before it ends.

        Raises:
            ConfigError: the file has a result of other inputs.
            CheckpointError: the file is damaged.
        """
        inputs = {**inputs, "stage before": self._before}
        if self.is_done(name):
            saved = self._read(name)
            self._refuse_others(name, saved["inputs"], inputs)
        else:
            began = time.monotonic()
            result = compute()
            saved = {"inputs": inputs, "result": result, "seconds": time.monotonic() - began}
            write(self._file(name), json.dumps(saved, indent=1) + "\n")
            saved = self._read(name)
        self._before = _digest({"inputs": saved["inputs"], "result": saved["result"]})
        return saved["result"]

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        try:
            saved = json.loads(file.read_text("utf-8"))
            return {key: saved[key] for key in ("inputs", "result", "seconds")}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} is damaged: {error}. Remove it, and its stage runs again:\nrm {file}"
            ) from error

    def _refuse_others(self, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(now))
        other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if not other:
            return
        run = self._folder.parent
        changes = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in other)
        raise ConfigError(
            f"{run} has a result of the stage {name} with other settings: {changes}. Give those it "
            f"was started with, or --clean moves it away, or --name {run.name}-2 starts another."
        )


def _digest(tree: Any) -> str:  # noqa: ANN401 - what JSON has
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
