"""Every causal family of transformers, tried tiny: the table of docs/results/families.md.

    .venv/bin/python -m tests.families.families    (about 10 CPU minutes; writes the page)

A family passes where each row of a rollout has the log-probabilities of that row alone to 1e-5,
with rows that end early and rows beyond every window and beyond `original_max_position_embeddings`,
where the update begins at ratio 1, and where the exported folders load and compute the same; with
a critic of its own and with one on the policy's trunk.
"""

import argparse
import logging
import platform
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmgym.rewards.context import longest_sequence
from tests import tiny
from trainers.errors import ConfigError
from trainers.export.folders import export_critic, export_policy
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.probe import check_rows
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic_folders import build_critic
from trainers.models.loading import load_causal_lm
from trainers.models.miniature import MINIATURE_ERRORS, miniature

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
PAGE = Path(__file__).parents[2] / "docs/results/families.md"
NEAR = 1e-5
PROMPTS = (3, 3, 7, 12, 20)
RESPONSES = (16, 2, 9, 20, 24)
"""Tokens of a rollout's rows; windows of miniatures have 8, contexts of RoPE's origin 16."""
MIXED = ["linear_attention", "full_attention"] * 2
CHANGES: dict[str, dict[str, object]] = {
    # What a default configuration leaves out and every published one of the family has.
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": MIXED, "num_hidden_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "qwen4_exp_text": {"head_dim": 8},
}
LONG = {"rope_theta": 1e4, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, object]] = {
    "llama": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, **LONG},
    "phi3": {"rope_type": "longrope", "short_factor": [1.0] * 48,
             "long_factor": [1.0, 4.0, 8.0, 16.0] * 12, **LONG},
    "qwen2": {"rope_type": "yarn", "factor": 4.0, **LONG},
}  # fmt: skip
"""RoPE that changes beyond a length, which the rows of a rollout cross, or end at ("longrope")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family was seen to do.

    Attributes:
        rollout: "cache", or "whole rows" where each token reads its row again; "" if refused.
        shared: an update, an export and a load with a critic on the policy's trunk.
        separate: the same with a critic of its own.
        reason: why one of them is not so.
    """

    name: str
    rollout: str = ""
    shared: bool = False
    separate: bool = False
    reason: str = ""

    @property
    def passes(self) -> bool:
        """Tell whether all of it is right."""
        return bool(self.rollout) and self.shared and self.separate

    def line(self) -> str:
        """Return its row of the table."""
        cells = [self.rollout or "refused", *("yes" if one else "" for one in (
            self.shared, self.separate))]  # fmt: skip
        return f"| `{self.name}` | {' | '.join(cells)} | {self.reason} |"


def family_config(name: str) -> PretrainedConfig:
    """Return the configuration of a family's class, with what published ones add to it."""
    given = dict(CHANGES.get(name, {}))
    if name in ROPES:
        given["rope_parameters"] = ROPES[name]
    return CONFIG_MAPPING[name](**given)


def measure(name: str, folder: Path) -> Family:
    """Try one family; its folders are written below `folder`."""
    try:
        model = miniature(family_config(name))
        with torch.no_grad():
            alone(model, [3, 4, 5], 1)
    except MINIATURE_ERRORS as error:
        return Family(name=name, reason=f"builds no tiny model here: {short(error)}")
    except ConfigError as error:
        return Family(name=name, reason=short(error))
    source = folder / "model"
    try:
        model.save_pretrained(source)
        cached = bool(check_rows(str(source)))
        worst = rollout_error(load_causal_lm(str(source)), cached=cached)
    except ConfigError as error:
        message = str(error).replace(str(source), "its folder")
        return Family(name=name, reason=short(message.rpartition("not supported: ")[2]))
    except MINIATURE_ERRORS as error:
        return Family(name=name, reason=f"does not save: {short(error)}")
    if worst > NEAR:
        return Family(name=name, reason=f"a row differs by {worst:.1g} from itself alone")
    reasons, done = [], {}
    for critic in ("shared", "separate"):
        try:
            done[critic] = learns(source, folder, critic)
        except (AssertionError, ConfigError, *MINIATURE_ERRORS) as error:
            reasons.append(f"{critic}: {short(error)}")
    rollout = "cache" if cached else "whole rows"
    return Family(name=name, rollout=rollout, **done, reason="; ".join(reasons))


def short(error: BaseException | str) -> str:
    """Return the beginning of a message, to stand in a cell."""
    message = " ".join(str(error).partition(". Choose ")[0].split()) or type(error).__name__
    return message.replace("|", "/")[:150]


def alone(model: transformers.PreTrainedModel, tokens: Sequence[int], start: int) -> torch.Tensor:
    """Return log-probabilities of a row from `start` on, by transformers' plain forward."""
    ids = torch.tensor([list(tokens)])
    logprobs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return logprobs[start - 1 : -1].gather(-1, ids[0, start:, None]).squeeze(-1)


@torch.no_grad()
def rollout_error(model: transformers.PreTrainedModel, *, cached: bool) -> float:
    """Return how far a rollout's log-probabilities are from those of each row alone, at most."""
    policy = CausalPolicy(model, temperature=1.0, chunk=512)
    writer = TransformersGenerator(
        GeneratorParts(
            policy=policy, eos_token_ids=(9,), pad_token_id=0, batch_size=8, cached=cached
        )
    )
    longest = longest_sequence(model.config)
    rng = torch.Generator().manual_seed(0)
    asked = [
        Request(
            token_ids=torch.randint(10, 60, (prompt,), generator=rng).tolist(),
            index=row,
            max_new_tokens=min(response, longest - prompt),
        )
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
        if prompt < longest
    ]
    worst = 0.0
    for one, got in zip(asked, writer.generate(asked, Sampling()), strict=True):
        right = alone(model, [*one.token_ids, *got.token_ids], len(one.token_ids))
        worst = max(worst, float((torch.tensor(got.logprobs).double() - right).abs().max()))
    return worst


def learns(source: Path, folder: Path, critic: str) -> bool:
    """Take one update from ratio 1, export, load again, and compare what is computed.

    Raises:
        AssertionError: something differs.
    """
    config = tiny.settings(critic=critic, learning_rate=1e-3, critic_learning_rate=1e-3)
    learner = tiny.learner(config, model=load_causal_lm(str(source)))
    made = tiny.on_policy(learner, tiny.experience())
    before = tiny.weights(learner)
    figures = tiny.update(learner, made, config).values()
    tiny.assert_on_policy(figures)
    assert tiny.difference(before, tiny.weights(learner)) > 0, "the update moved nothing"
    policy, whole = learner.policy_module, learner.whole_critic() or learner.whole_policy()
    chat = SimpleNamespace(tokenizer=tokenizer(), eos_token_ids=(9,), pad_token_id=0)
    export_policy(folder / critic, policy.model, chat, {"title": "tiny"})
    export_critic(folder / f"{critic}_critic", whole, {"title": "tiny"})
    again = load_causal_lm(str(folder / critic))
    values = build_critic(again, str(folder / f"{critic}_critic"))
    with torch.no_grad():
        expected = policy.model(input_ids=made.inputs.tokens, use_cache=False).logits
        got = again(input_ids=made.inputs.tokens, use_cache=False).logits
        torch.testing.assert_close(got, expected, atol=NEAR, rtol=NEAR)
        torch.testing.assert_close(
            values(made.inputs), learner.values(made.inputs), atol=NEAR, rtol=NEAR
        )
    return True


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words."""
    words = {f"w{i}": i for i in range(60)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")))


def page(families: Sequence[Family]) -> str:
    """Return docs/results/families.md."""
    right = sum(one.passes for one in families)
    refused = sum(not one.rollout for one in families)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    head = f"""# Model families

Each of the {len(families)} families that transformers lists for causal language models, tried on a
tiny random model in float32 ({versions}, Python {platform.python_version()}). **{right} pass
everything**; {refused} are refused before weights load or have no tiny model here.

- *Rollout*: log-probabilities of a batch are those of each row alone to 1e-5, with rows that end
  early, beyond every window, and beyond `original_max_position_embeddings`. "cache": written with a
  cache. "whole rows": the architecture keeps no cache that rows can share and leave, so each token
  reads its row again, which is slow.
- *Shared*, *separate*: one PPO update from ratio 1, export of policy and critic, and both folders
  loaded again compute the same, with `ppo.critic` shared and separate.

Every run tries its own architecture the same way before weights load. To make this page again:

    .venv/bin/python -m tests.families.families

| family | rollout | shared | separate | reason |
| --- | --- | --- | --- | --- |
"""
    return head + "\n".join(one.line() for one in families) + "\n"


def main() -> None:
    """Try all families and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(name, Path(folder)))
        logging.getLogger(__name__).error("%s", found[-1].line())
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
