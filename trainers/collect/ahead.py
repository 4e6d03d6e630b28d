"""One rollout ahead: the next one is written in a thread while the one before is learned from.

    weights     w0          w1          w2
    thread      rollout 1   rollout 2   rollout 3       written by w0, w1, w2
    main        learn 0     learn 1     learn 2         rollout 0 was written by w0 as well

So a rollout is one iteration older than the weights it changes first. It is written, and its old
log-probabilities are computed, by a copy of the policy whose weights are those of its version.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

from llmgym.limits import CallLimit
from trainers.batch import Inputs
from trainers.collect.base import Actor, Reference
from trainers.distributed.collectives import SideGroup

HURRY_SECONDS = 30.0
"""How long a call of an environment may take, once its rollout is not needed."""
Written = TypeVar("Written")


@final
class PolicyCopy:
    """The policy as it was when a rollout was begun: an actor whose weights stay.

    Args:
        module: a copy of the policy, with the same names of weights.
        scorer: computes log-probabilities with it.
    """

    def __init__(self, module: nn.Module, scorer: Reference) -> None:
        self._module, self._scorer = module, scorer
        self._version = -1

    @property
    def policy_version(self) -> int:
        """The version of the weights; -1 before the first."""
        return self._version

    @property
    def policy_module(self) -> nn.Module:
        """The bare copy."""
        return self._module

    @torch.no_grad()
    def take(self, actor: Actor) -> None:
        """Take the weights of `actor`, where they are others."""
        if self._version == actor.policy_version:
            return
        mine = dict(self._module.named_parameters())
        for name, tensor in actor.weights():
            mine.pop(name).copy_(tensor)
        assert not mine, f"no weights came for {next(iter(mine))}"
        self._version = actor.policy_version

    def logprobs(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return [B, T] log-probabilities of the actions by these weights."""
        return self._scorer.logprobs(inputs, response_mask)

    def values(self, inputs: Inputs) -> Tensor | None:
        """Return None: values are the learner's, when it learns."""
        del inputs

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the copy's (name, tensor)."""
        for name, weight in self._module.named_parameters():
            yield name, weight.detach()


@final
class AheadThread(Generic[Written]):
    """Runs one piece of work at a time in a thread of its own, each for an iteration.

    Args:
        limit: of the environments.
        side: the group in which the threads of all ranks wait for each other.
        device: of the policy.
    """

    def __init__(self, limit: CallLimit, side: SideGroup, device: torch.device) -> None:
        self._limit, self._side, self._device = limit, side, device
        self._work: tuple[int, Future[Written]] | None = None
        self._is_stopping = threading.Event()

    def is_stopping(self) -> bool:
        """True where nobody waits for the work any more."""
        return self._is_stopping.is_set()

    def begin(self, iteration: int, work: Callable[[], Written]) -> None:
        """Begin the work of an iteration."""
        assert self._work is None, "one rollout is written at a time"
        result: Future[Written] = Future()
        self._work = (iteration, result)

        def run() -> None:
            if self._device.type == "cuda":  # which device is current is a matter of the thread
                torch.cuda.set_device(self._device)
            try:
                with self._side.used():
                    result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                result.set_exception(error)

        threading.Thread(target=run, name="rollout", daemon=True).start()

    def wait(self) -> None:
        """Wait until no work is being done; an error of it is kept for `take`."""
        if self._work is not None:
            wait([self._work[1]])

    def take(self, iteration: int) -> Written | None:
        """Wait for the work of an iteration and return its result; None: none was begun.

        Raises:
            Exception: what the work raised, with its own traceback.
        """
        if self._work is None:
            return None
        self.wait()
        (begun, result), self._work = self._work, None
        assert begun == iteration, f"iteration {begun} was written, and {iteration} is asked for"
        return result.result()

    def stop(self) -> None:
        """Let the work end early and wait for it; what it has made is dropped."""
        self._is_stopping.set()
        self._limit.hurry(HURRY_SECONDS)
        self.wait()
        self._work = None
