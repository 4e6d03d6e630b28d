"""Starts llama.cpp's own server, by the package xllamacpp, and waits until it is asked to end.

Run in the environment of llama.cpp by its path: it imports nothing of this project. Settings come
as JSON on standard input, the token in the variable LLMGYM_ENDPOINT_TOKEN.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

import xllamacpp  # pyright: ignore[reportMissingImports]


def parameters(settings: dict[str, Any]) -> Any:  # noqa: ANN401 - llama.cpp's
    """Return llama.cpp's parameters for settings of `servers.ServeSettings`."""
    made = xllamacpp.CommonParams()
    made.model.path = settings["model"]
    made.model_alias = {settings["name"]}
    made.hostnames = [settings["host"]]
    made.port = settings["port"]
    made.n_parallel = settings["rows"]
    made.n_ctx = settings["cache_tokens"]
    made.kv_unified = True
    made.endpoint_metrics = True
    made.fit_params = False
    token = os.environ.get("LLMGYM_ENDPOINT_TOKEN")
    if token:
        made.api_keys = [token]
    if settings["threads"] is not None:
        made.cpuparams.n_threads = settings["threads"]
        made.cpuparams_batch.n_threads = settings["threads"]
    if settings["drafter"] is not None:
        made.speculative.draft.mparams.path = settings["drafter"]
        made.speculative.draft.n_max = settings["draft_tokens"]
    return made


def start_and_wait() -> None:
    """Start the server, and end with it at SIGTERM or SIGINT."""
    settings = json.load(sys.stdin)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = xllamacpp.Server(parameters(settings))
    sys.stdout.write(f"listening at {server.listening_address}\n")
    sys.stdout.flush()
    while not ended.wait(1.0):
        pass
    os._exit(0)  # its threads wait for requests


if __name__ == "__main__":
    start_and_wait()
