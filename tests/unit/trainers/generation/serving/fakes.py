"""Servers of a FakeEngine in threads, and what they are sent."""

import threading
from pathlib import Path

import torch

from tests.unit.trainers.generation.serving.fake_engine import FakeEngine
from trainers.generation.serving.client import ServerClient
from trainers.generation.serving.server import Server
from trainers.generation.serving.weights import write_weights
from trainers.generation.serving.worker import Worker

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "greedy": False}
ROOT = Path(__file__).parents[5]


def description(**changes):
    return {"model": {"layers": 2}, "tokenizer": "abc", "engine": {"dtype": "float32"}, **changes}


def opened(session="one", **changes):
    return {"protocol": 1, "session": session, **description(**changes)}


def request(seed=0, new=3, prompt=(1, 2)):
    return {"token_ids": list(prompt), "max_new_tokens": new, "seed": seed}


def asked(*seeds, new=3):
    return {"requests": [request(seed, new) for seed in seeds], "sampling": SAMPLING}


def weights_file(path, version, value=1.0):
    names = {"w": "w", "v": "v"}
    tensors = [("w", torch.full((2,), value)), ("v", torch.zeros(3))]
    write_weights(path, tensors, names=names, dtype=torch.float32, version=version)
    return path


def answer(seed, new, value):
    """Give what FakeEngine writes: ids that count up from the seed, log-probabilities -value."""
    return list(range(seed, seed + new)), [-value] * new


class Served:
    """A server of a FakeEngine in this process; `engine` is there once it was opened."""

    def __init__(self, *, token="", takes_paths=True):
        self.engine = None
        self.worker = Worker(self._build)
        address = ("127.0.0.1", 0)
        self.server = Server(address, self.worker, token=token, takes_paths=takes_paths)
        self.url = "http://{}:{}".format(*self.server.server_address)
        for target, arguments in ((self.server.serve_forever, (0.02,)), (self.worker.run, ())):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def _build(self, described):
        self.engine = FakeEngine(described)
        return self.engine

    def client(self, timeout=5.0, token=""):
        return ServerClient(self.url, timeout=timeout, token=token)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
