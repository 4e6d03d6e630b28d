"""A plain model from weights alone, for saving one that is shared out over ranks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.adapters import merged_weights
from trainers.models.causal_lm import CausalPolicy
from trainers.models.classifier import SequenceClassifier
from trainers.models.critic import Critic, SharedActorCritic, ValueHead


def unsharded(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a module of the kind of `module` that holds `weights`, by name, a tied one once.

    Adapters are added to the weights they adapt.

    Buffers that are not saved, such as the angles of positions, are missing: it does not compute.
    """
    assert isinstance(module, CausalPolicy | SharedActorCritic | Critic | SequenceClassifier)
    with torch.device("meta"):
        bare = module.trunk if isinstance(module, Critic) else module.model
        model = type(bare)(bare.config)
        if isinstance(module, Critic):
            reads = module.head.reads_logprobs
            head = ValueHead(module.head.width, model.device, reads_logprobs=reads)
            made: nn.Module = Critic(model, head, module.name)
        elif isinstance(module, SequenceClassifier):
            made = SequenceClassifier(model)
        else:
            scorer = module.scorer
            kind = type(module)
            arguments: dict[str, Any] = {"temperature": scorer.temperature, "chunk": scorer.chunk}
            if isinstance(module, SharedActorCritic):
                arguments["reads_logprobs"] = module.head.reads_logprobs
            made = kind(model, **arguments)
    report = made.load_state_dict(merged_weights(module, weights), strict=False, assign=True)
    model.tie_weights()
    assert not report.unexpected_keys, report.unexpected_keys
    empty = [name for name, weight in made.named_parameters() if weight.is_meta]
    assert not empty, f"no weights for {empty}"
    return made
