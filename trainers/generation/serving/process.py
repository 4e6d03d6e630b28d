"""A worker that a run starts itself: a child process, which ends with the run however it ends."""

import json
import os
import secrets
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from trainers.errors import LostServerError
from trainers.generation.serving.protocol import TOKEN_VARIABLE

PYTHON_VARIABLE = "LLMGYM_VLLM_PYTHON"
"""Environment variable with the interpreter of vLLM's environment."""
INSTALLED = Path(__file__).parents[3] / ".engines" / "vllm" / "bin" / "python"
"""What `make engines` installs in a checkout."""
START_SECONDS = 300.0
"""How long a worker may take to listen: vLLM is imported before, from a cold disk."""
END_SECONDS = 5.0
TAIL_LINES = 8
LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK",
    "MASTER_ADDR", "MASTER_PORT", "VIRTUAL_ENV",
)  # fmt: skip
"""Variables of the trainer's launcher and environment, which mean nothing to a worker."""


@final
class LocalWorker:
    """Starts, names and ends one worker.

    Args:
        command: starts it; `--child --port 0` is appended.
        log_folder: of the file that it prints to; None: a temporary folder.
        variables: of the environment, on top of this process's.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [*command, "--child", "--port", "0"]
        folder = log_folder or Path(tempfile.gettempdir())
        self.log = folder / f"generation-{os.getpid()}.log"
        self.token = secrets.token_hex(16)
        inherited = {
            key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES
        }
        self._variables = {**inherited, **(variables or {}), TOKEN_VARIABLE: self.token}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start the worker and return its address.

        Raises:
            LostServerError: it ended, or did not listen in time; with the end of what it printed.
        """
        self.stop()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C asks the run to stop, which still needs it
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            reason = "ended at its start" if ready else f"did not listen within {START_SECONDS:g} s"
            self.stop()
            raise LostServerError(f"the generation worker {reason}.\n{self.tail()}")
        return json.loads(line)["url"]

    @property
    def pid(self) -> int | None:
        """Number of the process; None where there is none."""
        return None if self._process is None else self._process.pid

    def tail(self) -> str:
        """Return the last lines that the worker printed, and where all of them are."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = "\n".join(text.splitlines()[-TAIL_LINES:])
        return f"{lines}\n(all that it printed: {self.log})"

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # which asks it to end
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
