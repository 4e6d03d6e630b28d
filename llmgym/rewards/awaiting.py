"""Awaits the calls of async reward functions, all of a batch at once.

They run on an event loop of our own, in a thread of its own: a notebook runs a loop already, and
what a function keeps between calls, such as an HTTP session, belongs to the loop that made it.
"""

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any

from llmgym.errors import LLMGymError
from llmgym.rewards.verdict import describe, failed


def awaited(results: Sequence[Any]) -> list[Any]:
    """Return results, those that must be awaited once they are there.

    All are awaited at the same time. One that raises is its own sample's failure, a `Score` of
    status "error", and is not asked again; the others count.
    """
    if not any(inspect.isawaitable(result) for result in results):
        return [*results]
    future = asyncio.run_coroutine_threadsafe(_all(results), _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:  # interrupted: nothing of this batch runs on
        future.cancel()
        raise


async def _all(results: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*map(_awaited, results))


async def _awaited(result: Any) -> Any:  # noqa: ANN401 - what a user's function returned
    return await _caught(result) if inspect.isawaitable(result) else result


async def _caught(result: Awaitable[Any]) -> Any:  # noqa: ANN401 - see _awaited
    try:
        return await result
    except LLMGymError:  # a broken reward, a missing library
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - sys.exit ends a loop
        return failed(describe(error))


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the running loop of a process; a fork has none of its parent's threads."""
    loop = asyncio.new_event_loop()
    name = f"llmgym rewards of {process}"
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop
