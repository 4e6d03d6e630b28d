"""An engine without a model and without torch: it counts, and fails as it is asked to."""

import math
import os
import struct
import threading
import time
from pathlib import Path

from trainers.generation.serving.protocol import read_records


class FakeEngine:
    """Writes one token per request and step.

    FAKE_FAULT "die" or "hang", at step FAKE_STEP, only while the file FAKE_ONCE does not exist.
    """

    name = "fake 1"
    can_sleep = False

    def __init__(self, described):
        if described["model"].get("heads") == 16:
            raise ValueError("heads of 16 do not run here")
        self.requests, self.value, self.steps, self.seconds = {}, math.nan, 0, 0.0
        self.updates = []

    def update(self, path, version):
        records = read_records(path, version)
        content = Path(path).read_bytes()
        [self.value] = struct.unpack_from("f", content, records[0].offset)
        self.updates.append(version)

    def add(self, key, request, sampling):
        if len(request["token_ids"]) > 8:
            raise ValueError("the prompt is longer than 8 tokens")
        self.requests[key] = (request, [])

    def is_busy(self):
        return bool(self.requests)

    def step(self):
        self.steps += 1
        self._fail()
        time.sleep(self.seconds)
        for request, ids in self.requests.values():
            ids.append(request["seed"] + len(ids))
        ended = [key for key, (request, ids) in self.requests.items()
                 if len(ids) == request["max_new_tokens"]]  # fmt: skip
        done = [(key, self.requests.pop(key)[1]) for key in ended]
        return [(key, ids, [-self.value] * len(ids)) for key, ids in done]

    def _fail(self):
        fault, once = os.environ.get("FAKE_FAULT"), os.environ.get("FAKE_ONCE")
        if fault and self.steps == int(os.environ["FAKE_STEP"]) and not os.path.exists(once):
            Path(once).touch()
            if fault == "die":
                os._exit(1)
            threading.Event().wait()

    def abort(self, keys):
        for key in keys:
            del self.requests[key]

    def sleep(self):
        self.value = math.nan
