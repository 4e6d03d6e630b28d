"""Settings of what a text run reads and writes: tokenizer, rows, environment, rewards, sampling.

No torch.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llmgym.data.curriculum import Levels
from llmgym.data.formats import FormatSetting
from llmgym.errors import TaskSourceError
from trainers.config.ppo import RULES, Count, NonNegative, Positive, Whole
from trainers.errors import ConfigError


@dataclass(config=RULES, frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer, where it is not the model's own."""

    path: str | None = None
    """A tokenizer folder or hub id; null: the model's own, or a fresh one for a fresh model."""
    pad_token: str | None = None
    """A token of the vocabulary that fills up short rows; null: the one the tokenizer names."""
    chat_template: str | None = None
    """A file with a Jinja chat template, or for a base model `plain` (a prompt is fed as it is) or
    `chatml`; null: the tokenizer's own."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class DataConfig:
    """Rows of the stages sft and reward_model, and of an environment that has no file of its own.

    A column is named as in the file; a dotted name (`reward_model.ground_truth`) reaches into one.
    """

    path: str | None = None
    """A .jsonl, .parquet, .csv or .tsv file, or a hub id; null: the solutions of `envs`. In a run
    with PPO it is the file of an environment that takes a `path` and has none."""
    format: FormatSetting = "auto"
    """What the rows were written for; auto: told by the first row, or the columns as they are where
    `prompt_column` is set."""
    prompt_column: str = "prompt"
    """Column with the prompt: text, or a list of messages. Rows have none where this is empty, or
    is `prompt` and `columns` does not name it."""
    response_column: str = "response"
    """Column with the response."""
    columns: list[str] | None = None
    """Names of a CSV's or TSV's columns, where it has no header line."""
    num_examples: Count | None = None
    """How many rows to use, the first ones; null: all (1024 of a procedural environment)."""
    last_assistant: Literal["raise", "split", "prefill"] = "raise"
    """What messages are that end with the assistant: an error; a prompt and its answer, the
    response (split); or a prompt whose response has begun (prefill)."""
    too_long: Literal["raise", "drop"] = "raise"
    """A row or a prompt over the length limit stops the run, or is dropped and counted."""
    split: str = "train"
    """Split of a hub data set."""

    def __post_init__(self) -> None:
        """Refuse a column that is named twice."""
        twice = [name for name in self.columns or () if (self.columns or ()).count(name) > 1]
        if twice:
            raise ConfigError(f'data.columns names "{twice[0]}" twice. Name each column once.')

    @property
    def has_prompts(self) -> bool:
        """False where a row is a response alone: the model learns the language of that column."""
        is_named = self.columns is None or self.prompt_column in self.columns
        return bool(self.prompt_column) and (is_named or self.prompt_column != "prompt")


@dataclass(config=RULES, frozen=True, kw_only=True)
class CurriculumConfig:
    """Which levels an environment's tasks have, as the policy gets better at them."""

    levels: list[Whole] = Field(default_factory=list[Whole])
    """Levels of the tasks, the easiest first; empty: those of `kwargs`, and no curriculum."""
    up: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The next level begins at this mean reward, as a share of the most an episode can earn."""
    down: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The level before begins again at this mean reward."""
    window: Count = 256
    """Episodes of a level that are judged together."""

    def __post_init__(self) -> None:
        """Refuse levels and shares that contradict each other."""
        if self.levels:
            try:
                Levels(tuple(self.levels), self.up, self.down, self.window)
            except TaskSourceError as error:
                raise ConfigError(f"envs.0.curriculum: {error}.") from error


@dataclass(config=RULES, frozen=True, kw_only=True)
class EnvConfig:
    """An environment of the run."""

    id: str = "llmgym/Arithmetic-v0"
    """A registered Gymnasium id, or `pkg.mod:ns/Name-v0`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment."""
    timeout_seconds: Positive = 600.0
    """Time one call of the environment may take; a later reply is a failed sample."""
    executor: Literal["inline", "threads", "processes"] = "inline"
    """Where episodes are played: in this process one after the other (inline), in threads of it, or
    in a process for each, which is killed where it hangs and made anew where it crashes."""
    workers: Count | None = None
    """Episodes played at a time in threads or processes; null: all, of threads up to 32."""
    memory_gb: Positive | None = None
    """Memory for the data of an environment's process, in GiB; null: no limit."""
    weight: Positive = 1.0
    """Share of each batch's prompts beside the other environments of `envs`."""
    name: str | None = None
    """What metrics call it; null: its id. Two entries of one id need names."""
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    """Levels that follow the policy."""

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.name or self.id

    def __post_init__(self) -> None:
        """Refuse settings of an executor that is not in use."""
        if self.workers is not None and self.executor == "inline":
            raise ConfigError(
                f"envs.0.workers {self.workers} has no effect on the executor inline. Set "
                "--envs.0.executor processes or threads, or drop it."
            )
        if self.memory_gb is not None and self.executor != "processes":
            raise ConfigError(
                f"envs.0.memory_gb {self.memory_gb:g} limits a process, and the executor is "
                f"{self.executor}. Set --envs.0.executor processes, or drop it."
            )


@dataclass(config=RULES, frozen=True, kw_only=True)
class RewardConfig:
    """One reward; at most one of function, name and model. None: the environment's own."""

    function: str | None = None
    """`pkg.mod:fn` or `FILE.py:fn`. Short form: --reward."""
    name: str | None = None
    """A registered reward, such as `math.boxed`."""
    model: str | None = None
    """A reward model or classifier: a folder or hub id. It keeps its own tokenizer and template."""
    dialect: Literal["auto", "llmgym", "trl", "verl", "openrlhf", "verifiers"] = "auto"
    """How a function is called: as the trainer or library of that name calls it; auto: told by its
    parameters."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of this reward in the sum."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the reward."""
    isolated: bool = True
    """Run a function in a process that can be killed when it hangs."""
    timeout_seconds: Positive = 30.0
    """Time one call of an isolated function may take."""

    def __post_init__(self) -> None:
        """Refuse two sources for one reward."""
        if len(self.source) > 1:
            sources = " and ".join(f"{name} {value!r}" for name, value in self.source.items())
            raise ConfigError(f"a reward has one source, got {sources}. Give one of them.")
        if self.dialect != "auto" and not self.function:
            raise ConfigError(
                f"the dialect {self.dialect} of a reward says how a function is called, and there "
                "is none. Name it with --reward FILE.py:FUNCTION, or drop the dialect."
            )

    @property
    def source(self) -> dict[str, str]:
        """What the reward is made of: its function, name or model, under that word."""
        sources = {"function": self.function, "name": self.name, "model": self.model}
        return {name: value for name, value in sources.items() if value}


@dataclass(config=RULES, frozen=True, kw_only=True)
class VllmConfig:
    """Workers with vLLM that a run starts itself, one per rank; `docs/guides/vllm.md`."""

    python: str | None = None
    """Interpreter of vLLM's environment; null: the variable LLMGYM_VLLM_PYTHON, else the one that
    `make engines` installs."""
    cache_gb: Positive = 1.0
    """Memory for keys and values of a worker, in GiB."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of `vllm.LLM`, such as tensor_parallel_size, enforce_eager, max_model_len."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class SpeculativeConfig:
    """A small model that drafts for the policy, which verifies; `docs/guides/speculative.md`."""

    drafter: str | None = None
    """Folder or hub id of the small model, of the policy's vocabulary."""
    length: Whole = 4
    """Tokens drafted in every cycle, where neither entropy nor controller is set; 0: none."""
    entropy: NonNegative | None = None
    """Draft until the drafter's entropy is not below this, in nats."""
    controller: str | None = None
    """Folder of a policy of `llmgym/Speculative-v0`, which decides."""
    longest: Count = 8
    """Maximum number of tokens drafted in a cycle."""

    def __post_init__(self) -> None:
        """Refuse two rules at once."""
        if self.entropy is not None and self.controller is not None:
            raise ConfigError(
                "generation.speculative has one rule: give entropy or controller, not both."
            )


@dataclass(config=RULES, frozen=True, kw_only=True)
class GenerationConfig:
    """How responses are sampled."""

    engine: Literal["transformers", "vllm", "speculative", "continuous"] = "transformers"
    """What writes responses, by the name of its file in `trainers/generation/`. Evaluation of a
    finished run always uses transformers."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)
    """Workers of `engine: vllm`."""
    speculative: SpeculativeConfig = Field(default_factory=SpeculativeConfig)
    """The drafter of `engine: speculative`."""
    servers: list[str] = Field(default_factory=list)
    """Addresses of running workers, `http://HOST:PORT`, that all ranks share; empty: each rank
    starts one."""
    ahead: Annotated[int, Field(ge=0, le=1)] = 0
    """1: a rollout is written while the one before is learned from, by weights one iteration older;
    0: by the weights that it changes. With 1 a resume is not bitwise exact."""
    timeout_seconds: Positive = 300.0
    """Time in which a worker must write a token or take weights; a slower one counts as lost, and
    its requests go to another."""
    tolerance: Positive | None = 0.1
    """Maximum mean difference, in nats per token, between the log-probabilities of an engine that
    is not exact and the trainer's; beyond it the run saves and stops. null: no maximum."""
    max_prompt_tokens: Count = 256
    """Longest prompt, in tokens; a longer one is never cut (see data.too_long)."""
    max_new_tokens: Count = 64
    """Longest response of a turn, in tokens."""
    temperature: Positive = 1.0
    """Divides the logits, for policy, old policy and reference alike."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of evaluation and play; training needs 1.0."""
    top_k: Whole = 0
    """Most likely tokens of evaluation and play; 0: all. Training needs 0."""
    eos_token_ids: list[Whole] | None = None
    """Ids that end a response; null: every one the model and its tokenizer name."""
    mask_unknown: bool = False
    """Give ids that the tokenizer does not hold (a padded vocabulary) probability 0, in sampling
    and in every log-probability alike; sampled ones vanish from the text that is scored."""
    batch_size: Count = 256
    """Maximum number of rows generated together."""

    def __post_init__(self) -> None:
        """Refuse addresses that are none, and sampling from another support than is scored."""
        for url in self.servers:
            if not re.fullmatch(r"http://[^/\s]+:[0-9]+", url):
                raise ConfigError(
                    f"generation.servers {url} must be http://HOST:PORT, as a worker prints it."
                )
        for field, got, neutral in (("top_p", self.top_p, 1.0), ("top_k", self.top_k, 0)):
            if got != neutral:
                raise ConfigError(
                    f"generation.{field} must be {neutral} in training, got {got}: narrowing the "
                    "support makes every ratio wrong. For evaluation: llmgym eval "
                    f"--{field.replace('_', '-')}"
                )
