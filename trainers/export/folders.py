"""Plain folders that need nothing of ours: language models for transformers, MLPs as safetensors.

Every folder is written aside and then renamed, so that a reader sees the old one or the new one
and never a half. `cli/export.py` computes with what was written and compares.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import Discrete
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from trainers.checkpoint.manifest import fsync
from trainers.errors import CheckpointError
from trainers.models.adapters import Adapter
from trainers.models.chat import ChatFormat
from trainers.models.classifier import SequenceClassifier
from trainers.models.critic import Critic, SharedActorCritic
from trainers.models.critic_folders import FolderKind, save_critic
from trainers.models.mlp import PolicyMLP, SharedMLP, ValueMLP
from trainers.models.saving import save_model
from trainers.redaction.redact import without_values

HOW_TO_READ: Mapping[FolderKind, str] = {
    "classifier": """Values of the states after each token of `ids` [B, L]:

```python
import torch
from transformers import AutoModelForTokenClassification

model = AutoModelForTokenClassification.from_pretrained("critic", dtype=torch.float32).eval()
values = model(input_ids=ids).logits.squeeze(-1)  # [B, L]
```""",
    "head": """transformers has no token classifier of this family, so this is the plain trunk with
the value head beside it. Values of the states after each token of `ids` [B, L]:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel

trunk = AutoModel.from_pretrained("critic", dtype=torch.float32).eval()
head = load_file("critic/value_head.safetensors")
hidden = trunk(input_ids=ids).last_hidden_state  # [B, L, D]
values = hidden @ head["weight"][0] + head["bias"]  # [B, L]
```""",
    "surprisal": """This critic reads the policy's log-probabilities too, so it is a plain trunk
with the value head beside it. Values of the states after each token of `ids` [B, L], where
`logprobs` [B, L] are those of the tokens that the policy wrote, 0 on all others:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel

trunk = AutoModel.from_pretrained("critic", dtype=torch.float32).eval()
head = load_file("critic/value_head.safetensors")
hidden = trunk(input_ids=ids).last_hidden_state  # [B, L, D]
total, largest = (-logprobs).cumsum(1), (-logprobs).cummax(1).values
shares = [1 - torch.exp(-one) for one in (total, largest, -logprobs)]
surprisal = torch.stack([*shares, torch.log1p(total)], -1)  # [B, L, 4]
states = torch.cat([hidden, surprisal * hidden.shape[-1] ** 0.5], -1)
values = states @ head["weight"][0] + head["bias"]  # [B, L]
```""",
}
"""What the README.md of a critic says, by the kind of its folder."""


def render_card(card: Mapping[str, Any]) -> str:
    """Return a model card in Markdown.

    Args:
        card: `title`; and where there are any `base_model` (hub id or folder), `stage` (a tag; ppo
            if not given), `metrics` (name -> figure), `text` and `library`.
    """
    title = card.get("title", "A policy trained with llmgym")
    front: dict[str, Any] = {
        "library_name": card.get("library", "transformers"),
        "tags": ["llmgym", card.get("stage", "ppo")],
    }
    if card.get("base_model"):
        front["base_model"] = str(card["base_model"])
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---"]
    lines += ["", f"# {title}", ""]
    if card.get("text"):
        lines += [str(card["text"]), ""]
    if card.get("metrics"):
        lines += ["| metric | value |", "| --- | --- |"]
        lines += [f"| `{name}` | {value:.4g} |" for name, value in card["metrics"].items()]
        lines += [""]
    return without_values("\n".join(lines))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `folder` when the block ends well.

    Raises:
        CheckpointError: it cannot be written; what was there before is whole.
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    before = folder.with_name(f".{folder.name}.old")
    try:
        if before.exists() and not folder.exists():  # a crash between the two renames below
            before.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.rglob("*"), aside):
            fsync(path)
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            folder.rename(before)
        aside.rename(folder)
        fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"cannot write {folder}: {reason}. What was there before is whole. "
            "Free space or make it writable, then go on with --resume."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def copy_export(source: Path, folder: Path) -> None:
    """Write what is in another export; no weight is loaded.

    Raises:
        CheckpointError: it cannot be written.
    """
    with replacing(folder) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def export_policy(
    folder: Path,
    model: PreTrainedModel,
    chat: ChatFormat,
    card: Mapping[str, Any],
    *,
    adapter: Adapter | None = None,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
        folder: replaced if it exists.
        model: the bare model; its weights are written as they are, tied ones once.
        chat: its tokenizer, template and end tokens, all of which go into generation_config.json.
        card: see `render_card`.
        adapter: what `model` has merged in; it is written to `adapter/` as well.

    Raises:
        CheckpointError: it cannot be written.
    """
    generation = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        bos_token_id=chat.tokenizer.bos_token_id,
        eos_token_id=list(chat.eos_token_ids),
        pad_token_id=chat.pad_token_id,
    )
    with replacing(folder) as aside:
        save_model(model, aside)
        chat.tokenizer.save_pretrained(aside)
        generation.save_pretrained(aside)
        if adapter is not None:
            adapter.save(aside / "adapter")
        (aside / "README.md").write_text(render_card(card), encoding="utf-8")


def export_classifier(
    folder: Path,
    judge: SequenceClassifier,
    tokenizer: PreTrainedTokenizerFast,
    card: Mapping[str, Any],
) -> None:
    """Write a folder that `AutoModelForSequenceClassification` and `AutoTokenizer` load.

    Raises:
        CheckpointError: it cannot be written.
    """
    with replacing(folder) as aside:
        save_model(judge.model, aside)
        tokenizer.save_pretrained(aside)
        (aside / "README.md").write_text(render_card(card), encoding="utf-8")


def export_critic(
    folder: Path, critic: Critic | SharedActorCritic, card: Mapping[str, Any] | None = None
) -> None:
    """Write a folder as of `critic_folders`; its README.md says how plain transformers reads it.

    Raises:
        CheckpointError: it cannot be written.
    """
    with replacing(folder) as aside:
        kind = save_critic(aside, critic.trunk, critic.head)
        fields = {"title": "A critic trained with llmgym", **(card or {})}
        fields["text"] = "\n\n".join(filter(None, (fields.get("text"), HOW_TO_READ[kind])))
        (aside / "README.md").write_text(render_card(fields), encoding="utf-8")


def export_mlp(
    folder: Path,
    policy: PolicyMLP | SharedMLP,
    value: ValueMLP | None,
    card: Mapping[str, Any],
) -> None:
    """Write a policy over numeric observations, and its critic where it is separate.

    Raises:
        CheckpointError: it cannot be written.
    """
    space = policy.head.space()
    discrete = (
        {"n": int(space.n), "start": int(space.start)} if isinstance(space, Discrete) else None
    )
    config = {
        "kind": type(policy).__name__,
        "obs_size": next(m for m in policy.modules() if isinstance(m, nn.Linear)).in_features,
        "hidden_sizes": [m.out_features for m in policy.trunk if isinstance(m, nn.Linear)],
        "actions": discrete or {"shape": list(space.shape or ())},
    }
    with replacing(folder) as aside:
        save_file(_contiguous(policy), aside / "model.safetensors")
        if value is not None:
            save_file(_contiguous(value), aside / "critic.safetensors")
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        text = render_card({"library": "pytorch", **card})
        (aside / "README.md").write_text(text, encoding="utf-8")


def _contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
