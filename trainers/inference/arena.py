"""Models side by side in one environment, a task at a time: what `llmgym play` shows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from trainers.collect.environments import reward_of, text_envs
from trainers.collect.episodes import Slot
from trainers.collect.play import PlayOptions, play
from trainers.config import Config
from trainers.distributed.collectives import World
from trainers.generation.base import Request, Sampling
from trainers.inference.loading import LoadedModel, load_for_inference
from trainers.inference.targets import Target

GREEDY = Sampling(greedy=True)


@final
class Arena:
    """One environment, and the models that answer in it, the trained one first.

    Args:
        config: environment, rewards and limits.
        targets: the models; the first is called `answer`, a second `base`.
    """

    def __init__(self, config: Config, targets: Sequence[Target]) -> None:
        self._config = config
        models = [load_for_inference(replace(target, config=config), GREEDY) for target in targets]
        self._models = dict(zip(("answer", "base"), models, strict=False))
        reward = reward_of(config, None)
        self._envs = text_envs(config, 1, env=None, reward=reward, held_out=True)

    def task(self, number: int) -> tuple[str, list[tuple[str, str, float, dict[str, float]]]]:
        """Return the prompt of a held-out task, and a name, answer, reward and parts a model."""
        count = self._envs.num_tasks()
        index = number if count is None else number % count
        prompt, answers = "", []
        for name, model in self._models.items():
            slot = self._played(model, index)
            prompt = "\n".join(str(message["content"]) for message in slot.opening)
            response = "\n".join(slot.completions)
            answers.append((name, response, sum(slot.rewards), dict(slot.parts)))
        return prompt, answers

    def _played(self, model: LoadedModel, index: int) -> Slot:
        options = PlayOptions(
            indices=[index], index=[index], world=World(), max_tokens=model.longest
        )
        with torch.no_grad():
            return play(
                self._envs,
                model.generator,
                chat=model.chat,
                config=self._config,
                sampling=GREEDY,
                options=options,
            ).slots[0]

    def answers(self, text: str) -> list[tuple[str, str]]:
        """Return each model's name and answer to the user's own words."""
        answers = []
        for name, model in self._models.items():
            ids = model.chat.prompt_ids(({"role": "user", "content": text},))
            limit = min(self._config.generation.max_new_tokens, model.longest - len(ids))
            if limit < 1:
                answers.append((name, f"(the prompt has {len(ids)} tokens, too many for it)"))
                continue
            request = Request(token_ids=ids, index=0, max_new_tokens=limit)
            with torch.no_grad():
                (response,) = model.generator.generate([request], GREEDY)
            answers.append((name, model.chat.decode(response.token_ids)))
        return answers

    def close(self) -> None:
        """Close the environment."""
        self._envs.close()
