"""What several environments of one run must have in common. No torch."""

from collections import Counter
from collections.abc import Sequence

from llmgym.data.mixture import quotas
from llmgym.errors import TaskSourceError
from trainers.config.text import EnvConfig
from trainers.errors import ConfigError

SHARED = ("timeout_seconds", "executor", "workers", "memory_gb")
"""Settings of how slots are played, which one vector has once."""


def check_mixture(envs: Sequence[EnvConfig], *, num_prompts: int, is_control: bool) -> None:
    """Refuse environments that cannot share a batch.

    Args:
        envs: of the run.
        num_prompts: of a batch.
        is_control: whether they are of numbers.

    Raises:
        ConfigError: one would get no prompt, two have one name, they are played differently, or
            are of numbers.
    """
    first = envs[0]
    if is_control and (len(envs) > 1 or first.curriculum.levels):
        what = f"{len(envs)} environments" if len(envs) > 1 else "envs.0.curriculum"
        raise ConfigError(
            f"run.kind control trains on one environment as it is, got {what}. Mixtures and "
            "curricula are of text: drop the others, or set --run.kind text."
        )
    twice = [label for label, count in Counter(env.label for env in envs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two of envs are called {twice[0]}, and their metrics would be one. Give each a name: "
            "--envs.0.name A --envs.1.name B"
        )
    if len(envs) > 1 and any(env.label == "all" for env in envs):
        raise ConfigError(
            "the metrics of all environments together are called all. Take another name."
        )
    for number, env in enumerate(envs[1:], start=1):
        for setting in SHARED:
            if getattr(env, setting) != getattr(first, setting):
                raise ConfigError(
                    f"envs.{number}.{setting} is {getattr(env, setting)} and envs.0.{setting} "
                    f"{getattr(first, setting)}: the environments of a mixture are played "
                    "together. Give all the same."
                )
    if len(envs) > 1 and num_prompts:
        try:
            quotas([env.weight for env in envs], num_prompts)
        except TaskSourceError as error:
            raise ConfigError(f"envs: {error}: --ppo.num-prompts, --envs.0.weight.") from error
    if len(envs) == 1 and first.weight != 1.0:
        raise ConfigError(
            f"envs.0.weight {first.weight:g} is a share beside other environments, and there is no "
            "other. Drop it, or add one under envs."
        )
