"""Builds the samples that the tests of rewards score."""

from llmgym.messages import Completion, Sample, Task


def sample(response, answer=None, *, group=0, over=True, source="here", turn=0, **columns):
    """Make one finished sample (or, with `over` false, one within an episode)."""
    task = Task(id="t1", prompt="What?", answer=answer, source=source, meta=columns)
    return Sample(
        task=task,
        messages=(),
        response=Completion(response),
        text=response,
        terminated=over,
        group=group,
        turn=turn,
    )
