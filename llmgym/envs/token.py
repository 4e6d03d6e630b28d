"""`llmgym/Token-v0`: a task of one turn as a classical environment, one token per step.

For libraries that need `Box` and `Discrete`, such as Stable-Baselines3: to study their algorithms
on text, not to train large models. An observation is a window of token numbers, the prompt and then
what was written, filled up in front. An action is a token. The response ends with the token `end`
or at `max_tokens`, is scored by the task's own reward, and only this last step is paid.

Tokens are the characters of `alphabet`, so that a small vocabulary can be learned, or bytes.
"""

from typing import Any, ClassVar, final

import gymnasium
import numpy as np

from llmgym.data.splits import Split, check_split
from llmgym.env import LLMEnv, LLMWrapper, SingleTurnEnv, inner_env
from llmgym.errors import EnvContractError
from llmgym.messages import Completion
from llmgym.registry import spec
from llmgym.step import is_valid, reward_of

BYTES = 256


@final
class TokenEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One token per step of a response to a task of one turn.

    Args:
        env: of one turn, perhaps wrapped in wrappers of ours.
        alphabet: characters that are tokens; None for bytes.
        max_prompt: tokens of a prompt that are seen, its last ones.
        max_tokens: longest response.
        render_mode: None; there is nothing to draw.

    Attributes:
        pad: number that fills a window up, and stands for a character that is no token.
        end: number of the token that ends a response.

    Raises:
        EnvContractError: the environment has several turns, or a setting is out of its range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        alphabet: str | None = None,
        max_prompt: int = 32,
        max_tokens: int = 8,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(env.unwrapped, SingleTurnEnv):
            raise EnvContractError(
                f"a token per step needs tasks of one turn; received {type(env.unwrapped).__name__}"
            )
        if max_prompt < 1 or max_tokens < 1 or (alphabet is not None and not alphabet):
            raise EnvContractError(
                "max_prompt and max_tokens are 1 or more, and alphabet has a character; received "
                f"{max_prompt}, {max_tokens} and {alphabet!r}"
            )
        self.env = env
        self.alphabet = alphabet
        self.render_mode = render_mode
        self.max_prompt, self.max_tokens = max_prompt, max_tokens
        self.end = BYTES if alphabet is None else len(alphabet)
        self.pad = self.end + 1
        width = max_prompt + max_tokens
        self.observation_space = gymnasium.spaces.Box(0, self.pad, (width,), np.int64)
        self.action_space = gymnasium.spaces.Discrete(self.end + 1)
        self._layer: LLMEnv | LLMWrapper = inner_env(env)
        self._prompt: list[int] = []
        self._written: list[int] = []

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        if self.alphabet is None:
            return list(text.encode("utf-8", "surrogatepass"))
        places = {character: place for place, character in enumerate(self.alphabet)}
        return [places.get(character, self.pad) for character in text]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; bytes that are no text are replaced."""
        if self.alphabet is None:
            return bytes(tokens).decode("utf-8", "replace")
        return "".join(self.alphabet[token] for token in tokens)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a task; options are those of the inner environment."""
        super().reset(seed=seed)
        observation, info = self.env.reset(seed=seed, options=options)
        text = "\n".join(str(message["content"]) for message in observation)
        self._prompt, self._written = self.encode(text)[-self.max_prompt :], []
        return self._window(), {"task_id": info["task_id"]}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Write a token.

        Returns:
            The window [max_prompt + max_tokens], the reward, terminated (by the token `end`),
            truncated (at `max_tokens`), and at the end an info with `text` and `reward_valid`.
        """
        token = int(action)
        terminated = token == self.end
        if not terminated:
            self._written.append(token)
        truncated = not terminated and len(self._written) >= self.max_tokens
        if not (terminated or truncated):
            return self._window(), 0.0, False, False, {}
        text = self.decode(self._written)
        response = Completion(text, finish_reason="stop" if terminated else "length")
        *_, sample = self._layer.advance(response)
        (score,) = self._layer.score_batch([sample])
        info = {"text": text, "reward_valid": is_valid(sample, score)}
        return self._window(), reward_of(sample, score), terminated, truncated, info

    def close(self) -> None:
        """Close the inner environment."""
        self.env.close()

    def _window(self) -> np.ndarray:
        tokens = [*self._prompt, *self._written]
        filled = [self.pad] * (self.max_prompt + self.max_tokens - len(tokens)) + tokens
        return np.array(filled, dtype=np.int64)


def make(  # noqa: PLR0913 - each is a setting
    *,
    env_id: str = "llmgym/Arithmetic-v0",
    env_kwargs: dict[str, Any] | None = None,
    alphabet: str | None = "0123456789 +-*=",
    max_prompt: int = 16,
    max_tokens: int = 8,
    split: Split = "train",
    render_mode: str | None = None,
) -> TokenEnv:
    """Build the environment.

    Args:
        env_id: of the tasks, which have one turn.
        env_kwargs: arguments of that environment.
        alphabet: characters that are tokens; None for bytes.
        max_prompt: tokens of a prompt that are seen, its last ones.
        max_tokens: longest response.
        split: of the tasks: "train", "test" or "all".
        render_mode: None; there is nothing to draw.

    Raises:
        EnvContractError: the environment has several turns, or a setting is out of its range.
    """
    check_split(split)
    inner = gymnasium.make(
        spec(env_id), disable_env_checker=True, **{"split": split, **(env_kwargs or {})}
    )
    return TokenEnv(
        inner,
        alphabet=alphabet,
        max_prompt=max_prompt,
        max_tokens=max_tokens,
        render_mode=render_mode,
    )
