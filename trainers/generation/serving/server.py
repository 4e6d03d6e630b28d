"""A generation worker: an HTTP server around one engine, in a process and environment of its own.

Not vLLM's own server: that one knows no policy version of a request, and takes no weights on a
CPU. Needs the standard library, and what its engine needs; `vllm_worker.py` runs it.
"""

import argparse
import hmac
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final

from trainers.generation.serving.protocol import (
    PATH_HEADER,
    SESSION_HEADER,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    WeightsError,
)
from trainers.generation.serving.worker import (
    ENGINE_ERRORS,
    NotOpenError,
    RefusedError,
    TextEngine,
    Worker,
)

PIECE = 2**20
"""Bytes of weights that are received at once."""
PROGRESS_SECONDS = 1.0
"""How often a rollout that continues is reported."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@final
class RequestHandler(BaseHTTPRequestHandler):
    """One request of a trainer."""

    server: "Server"

    def do_GET(self) -> None:
        """Answer /status, at once, whatever the engine does."""
        self._answer({"/status": self.server.worker.status})

    def do_POST(self) -> None:
        """Answer all else."""
        self._answer(
            {
                "/open": self._open,
                "/weights": self._weights,
                "/generate": self._generate,
                "/sleep": self._sleep,
            }
        )

    def _answer(self, actions: Mapping[str, Callable[[], dict[str, Any] | None]]) -> None:
        action = actions.get(self.path)
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent, self.server.token):
            self._reply(401, {"error": f"the secret of {TOKEN_VARIABLE} is another one here"})
        elif action is None:
            self._reply(404, {"error": f"nothing answers {self.path}"})
        else:
            try:
                answer = action()
            except NotOpenError as error:
                self._reply(410, {"error": str(error)})
            except (RefusedError, WeightsError) as error:
                self._reply(409, {"error": str(error)})
            except ENGINE_ERRORS as error:
                self._reply(400, {"error": f"{type(error).__name__}: {error}"})
            else:
                if answer is not None:
                    self._reply(200, answer)

    def _reply(self, code: int, body: Mapping[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _json(self) -> Any:  # noqa: ANN401 - a value of JSON
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _session(self) -> str | None:
        return self.headers.get(SESSION_HEADER)

    def _version(self) -> int:
        return int(self.headers[VERSION_HEADER])

    def _open(self) -> dict[str, Any]:
        return self.server.worker.call(self.server.worker.open, self._json())

    def _sleep(self) -> dict[str, Any]:
        return self.server.worker.call(self.server.worker.sleep, self._session())

    def _weights(self) -> dict[str, Any]:
        path = self.headers.get(PATH_HEADER)
        if path is not None:
            if not self.server.takes_paths:
                raise RefusedError("only a worker that the trainer started reads paths")
            return self._load(Path(path))
        with tempfile.NamedTemporaryFile(prefix="llmgym-weights-") as file:
            for piece in _pieces(self.rfile.read, int(self.headers["Content-Length"])):
                file.write(piece)
            file.flush()
            return self._load(Path(file.name))

    def _load(self, path: Path) -> dict[str, Any]:
        return self.server.worker.call(
            self.server.worker.load, path, self._session(), self._version()
        )

    def _generate(self) -> None:
        asked = self._json()
        session, version = self._session(), self._version()
        stream = self.server.worker.call(self.server.worker.generate, asked, session, version)
        self.send_response(200)
        self.end_headers()  # no length: the lines end with the connection, and with "done" before
        try:
            for line in _lines(stream, len(asked["requests"]), version):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except ConnectionError:  # the trainer has asked another worker, or is gone
            self.server.worker.call(self.server.worker.forget, stream)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing of what is answered."""


def _pieces(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size:
        piece = read(min(size, PIECE))
        if not piece:
            raise WeightsError(f"the connection ended {size} bytes before the weights did")
        size -= len(piece)
        yield piece


def _lines(stream: "queue.Queue[Any]", count: int, version: int) -> Iterator[Mapping[str, Any]]:
    """Yield responses as they end, a beat where the engine continues, and `done` at the end."""
    told = time.monotonic()
    while count:
        line = stream.get()
        if line == "step":
            if time.monotonic() - told < PROGRESS_SECONDS:
                continue
            line = {"beat": True}
        told = time.monotonic()
        yield line
        if "error" in line:
            return
        count -= "request" in line
    yield {"done": True, "version": version}


@final
class Server(ThreadingHTTPServer):
    """Listens for trainers, each request in a thread of its own.

    Args:
        address: host and port; 0: any free one.
        worker: does what they ask for.
        token: secret of every request; empty: none is asked for.
        takes_paths: load weights from a path: the trainer is on this machine and started it.
    """

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], worker: Worker, *, token: str, takes_paths: bool
    ) -> None:
        super().__init__(address, RequestHandler)
        self.worker, self.token, self.takes_paths = worker, token, takes_paths


def _end_with_parent() -> None:
    """End this process when the other end of its standard input closes, however that happens."""
    sys.stdin.buffer.read()
    os._exit(0)


def serve(build: Callable[[Mapping[str, Any]], TextEngine], arguments: Sequence[str]) -> None:
    """Serve until the process ends, which a child's does with its parent.

    Args:
        build: makes the engine from what `/open` describes.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description="A generation worker for llmgym train.")
    parser.add_argument("--host", default=LOOPBACK[0], help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="0: any free one")
    parser.add_argument("--child", action="store_true", help="end with the process that started it")
    options = parser.parse_args(arguments)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if options.host not in LOOPBACK and not token:
        parser.error(
            f"--host {options.host} lets other machines in: set the environment variable "
            f"{TOKEN_VARIABLE} to one secret, here and where llmgym train runs"
        )
    worker = Worker(build)
    address = (options.host, options.port)
    server = Server(address, worker, token=token, takes_paths=options.child)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    sys.stdout.write(json.dumps({"url": f"http://{host}:{port}"}) + "\n")
    sys.stdout.flush()
    if options.child:
        os.dup2(2, 1)  # engines print; nobody reads this pipe any more
        threading.Thread(target=_end_with_parent, daemon=True).start()
    worker.run()
