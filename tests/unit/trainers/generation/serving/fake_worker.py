"""A worker process with a FakeEngine."""

import sys

from tests.unit.trainers.generation.serving.fake_engine import FakeEngine
from trainers.generation.serving.server import serve

if __name__ == "__main__":
    serve(FakeEngine, sys.argv[1:])
