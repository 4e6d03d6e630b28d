"""The work for the verdicts of isolated rewards, counted without processes."""

import sys

from llmgym.rewards import isolate
from llmgym.rewards.isolate import Isolated
from llmgym.rewards.rules import Numeric
from tests.unit.llmgym.samples import sample


class Reads(list):
    """A list that counts what is read of it."""

    reads = 0

    def __getitem__(self, place):
        self.reads += 1
        return super().__getitem__(place)

    def __iter__(self):
        self.reads += len(self)
        return super().__iter__()


def test_the_work_for_a_verdict_does_not_grow_with_the_samples(monkeypatch):
    def work(count):
        lines = 0

        def trace(frame, event, arg):
            nonlocal lines
            if frame.f_code.co_filename == isolate.__file__:
                lines += event == "line"
                return trace
            return None

        class Prompt:
            """Answers at once, in this process."""

            ready, busy, deadline, verdicts, positions = True, False, float("inf"), None, ()

            def grade(self, samples, positions, timeout):
                self.busy, self.positions = True, positions

            def read(self):
                self.busy = False
                return {"scores": [{"value": float(self.positions[0])}]}

            def kill(self):
                """There is no process."""

        monkeypatch.setattr(isolate.Worker, "start", lambda reward: Prompt())
        monkeypatch.setattr(isolate, "wait", lambda pipes, patience: pipes)
        monkeypatch.setattr(isolate.time, "monotonic", lambda: 0.0)
        samples = Reads([sample("")] * count)
        reward = Isolated(Numeric(), workers=1)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            scores = reward.score(samples)
        finally:
            sys.settrace(before)
        assert [score.value for score in scores] == [*range(count)]
        assert samples.reads == count
        return lines

    small, large = work(50), work(500)
    assert large < 10.5 * small
