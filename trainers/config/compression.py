"""The settings of a compression: budget, searchers, what it is measured on. No torch."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from trainers.errors import ConfigError

BUDGETS = ("latency", "bytes", "params")
"""What a budget can limit, each as a share of the dense model's."""
SearcherName = Literal[
    "ppo",
    "ppo-cold",
    "dp",
    "uniform",
    "shortgpt",
    "sleb",
    "greedy",
    "random",
    "evolution",
    "evolution-from-dp",
]
Recovery = Literal["none", "ppo", "gkd", "sft"]
ALWAYS: tuple[SearcherName, ...] = ("uniform", "shortgpt", "dp")
"""Searchers of one plan each, which always run: their plans are among those that the best is of."""
DEFAULT: tuple[SearcherName, ...] = ("ppo",)
"""Searchers that run where none is named."""
PLACE = ("name", "dir")
"""Settings that say where the result is, and not what it is."""


@dataclass(frozen=True, kw_only=True)
class CompressionSettings:
    """Make a model smaller under a budget, and write it as a plain Hugging Face folder."""

    budget: tuple[str, ...] = ()
    """KIND=SHARE of the dense model: latency, bytes or params, such as latency=0.5; repeat it for
    several."""
    recover: Recovery = "none"
    """What wins quality back after slicing: distillation on the tasks of the environment, by PPO,
    by the gradient of a divergence (gkd), or on the dense model's own texts (sft)."""
    recover_iterations: int = 100
    """Iterations of the recovery, at most."""
    recover_minutes: float | None = 10.0
    """Minutes after which the recovery ends; none: after its iterations."""
    rerank: int = 3
    """Finalists that recover for a moment before one is chosen; with a recovery alone."""
    rerank_steps: int = 50
    """Optimizer steps of that."""
    int8: bool = True
    """Write the result in int8 too, to model-int8/."""
    search: tuple[SearcherName, ...] = ()
    """Searchers besides uniform, shortgpt and dp, which try one plan each; ppo without one; repeat
    it for several. The best plan of all on the selection split wins. ppo begins at the plan of dp,
    ppo-cold anywhere."""
    evaluations: int = 500
    """Evaluations that every searcher may pay for, those of the sensitivities included: 1,024
    tokens through one candidate each."""
    finalists: int = 8
    """Best plans that are scored again, on all selection tokens."""
    name: str = "compressed"
    """Folder of the result below `dir`; a second call continues what is there."""
    dir: str = "runs"
    """Folder that holds all runs."""
    data: str | None = None
    """File of rows or of text to measure quality on; none: the dense model writes to tasks of its
    run's environment."""
    report_data: str | None = None
    """File that the report is measured on; none: a part of `data`, or held-out tasks."""
    calibration_tokens: int = 12_288
    """Tokens that weights are fitted to."""
    selection_tokens: int = 8_192
    """Tokens that the finalists are chosen by."""
    report_tokens: int = 8_192
    """Tokens that the result is reported on."""
    row_tokens: int = 256
    """Longest row of `data`; what is behind is cut off."""
    phase: Literal["decode", "prefill"] = "decode"
    """What latency is of: one token after the prompt, or the prompt."""
    batch: int = 1
    """Rows of the pass whose latency is measured."""
    prompt_tokens: int = 64
    """Tokens of its prompt."""
    threads: int = 1
    """Threads that latency is measured on. On one the clock is CPU time, which other programs do
    not disturb."""
    rounds: int = 60
    """How often each piece is timed; the least time counts."""
    score_tasks: int = 256
    """Held-out tasks that dense and smaller model are scored on; 0: none."""
    seed: int = 0
    """Seed of every random stream."""

    def __post_init__(self) -> None:
        """Refuse what no model could make right.

        Raises:
            ConfigError: names the setting.
        """
        _ = self.shares
        for name, allowed in ALLOWED_WORDS.items():
            for word in _words(getattr(self, name)):
                if word not in allowed:
                    raise ConfigError(f"--{name} is one of {', '.join(allowed)}, got {word!r}.")
        for name, least in LEAST_VALUES.items():
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} must be {least} or more, got {getattr(self, name)}. Set it higher."
                )
        if self.recover_minutes is not None and not self.recover_minutes > 0:
            raise ConfigError(
                f"--recover-minutes must be above 0, got {self.recover_minutes}. Set it higher."
            )

    @property
    def shares(self) -> dict[str, float]:
        """The budgets by kind, as shares of the dense model.

        Raises:
            ConfigError: there is none, or one that is no share of a kind that has a budget.
        """
        if not self.budget:
            raise ConfigError(
                "no budget is given. Say how small the model is to be, as a share of what it is "
                f"now: --budget latency=0.5, of {', '.join(BUDGETS)}."
            )
        shares: dict[str, float] = {}
        for text in self.budget:
            kind, _, value = text.partition("=")
            if kind not in BUDGETS:
                raise ConfigError(
                    f"a budget is of {', '.join(BUDGETS)}, got {text!r}. Write --budget latency=0.5"
                )
            if kind in shares:
                raise ConfigError(f"the budget of {kind} is given twice. Give it once.")
            shares[kind] = _share(kind, value)
        return shares

    @property
    def searchers(self) -> tuple[SearcherName, ...]:
        """Those that run, each once."""
        return tuple(dict.fromkeys((*ALWAYS, *(self.search or DEFAULT))))

    def identity(self) -> dict[str, Any]:
        """Return what makes a result another one, by name, as JSON has it."""
        values = {field.name: getattr(self, field.name) for field in fields(CompressionSettings)}
        lists = {"budget": list(self.budget), "search": list(self.searchers)}
        return {name: value for name, value in {**values, **lists}.items() if name not in PLACE}


ALLOWED_WORDS = {
    "search": get_args(SearcherName),
    "recover": get_args(Recovery),
    "phase": ("decode", "prefill"),
}
"""What may stand in a setting of words."""
LEAST_VALUES = {
    "evaluations": 1,
    "recover_iterations": 1,
    "rerank": 1,
    "rerank_steps": 1,
    "finalists": 1,
    "calibration_tokens": 1,
    "selection_tokens": 1,
    "report_tokens": 1,
    "row_tokens": 2,
    "batch": 1,
    "prompt_tokens": 2,
    "threads": 1,
    "rounds": 10,
    "score_tasks": 0,
    "seed": 0,
}
"""The least value of each number."""


def _words(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _share(kind: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise ConfigError(
            f"the budget of {kind} is a share of the dense model between 0 and 1, got {value!r}. "
            f"Write --budget {kind}=0.5"
        )
    return share
