"""A learner on DeepSpeed, and what a few updates of it leave behind; run at two ranks."""

import gc
import os
import random
import weakref
from dataclasses import replace
from unittest import mock

import torch
import torch.distributed as dist

from tests import tiny
from trainers.backends.zero.json import engine_json
from trainers.config.backend import ZeroConfig
from trainers.distributed.collectives import gather
from trainers.errors import NonFiniteError
from trainers.ppo import update

PLACES = [
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (1, "optimizer"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "params"),
]
"""Stage and offload: all there are."""
ROWS = [[6, 0, 3], [1, 2, 4, 5, 7]]
"""The rows of each rank: unequal in number and in tokens."""
RATES = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2}
SHARD_ALL = {"stage3_param_persistence_threshold": 0}
"""Small tensors are shared out as well; else a tiny model would be whole everywhere."""

AIO = {
    "block_size": 1024,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}


def nvme():
    """The folder that stands for NVMe; from now on DeepSpeed writes tensors from 1 KiB on to it."""
    from deepspeed.runtime.swap_tensor import (  # noqa: PLC0415 - where it is installed
        optimizer_utils,
        partitioned_param_swapper,
    )

    for module in (optimizer_utils, partitioned_param_swapper):
        module.MIN_AIO_BYTES = 1024
    return os.environ["LLMGYM_TEST_NVME"]


def mine(made):
    """This rank's rows; all of them when alone."""
    rows = ROWS[dist.get_rank()] if dist.is_initialized() else range(8)
    return made.rows(torch.tensor(list(rows)))


def engines(stage, offload="none", dtype=torch.float32, **more):
    """What builds engines at this stage, with `more` for DeepSpeed's ZeRO."""
    from trainers.backends.zero.engine import DeepSpeedEngine  # noqa: PLC0415 - where it is installed

    def build(module, settings, name):
        adamw = {
            "lr": settings.learning_rate,
            "betas": list(settings.betas),
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
            "torch_adam": True,
        }
        offload_to, _, place = offload.partition(" on ")
        json = engine_json(
            ZeroConfig(stage=stage, offload=offload_to, nvme_path=nvme() if place else None),
            adamw,
            max_grad_norm=settings.max_grad_norm,
            is_bf16=dtype == torch.bfloat16 and stage > 0,
            on_gpu=False,
            tuning={
                "zero_optimization": {
                    **(SHARD_ALL if stage == 3 else {}),
                    **({"sub_group_size": 3000} if place else {}),
                    **more,
                },
                **({"aio": AIO} if place else {}),
            },
        )
        return DeepSpeedEngine(module, settings, name=name, device=tiny.CPU, dtype=dtype, json=json)

    return build


def full(learner):
    """Every weight of policy and critic by name, gathered and copied."""
    named = {}
    for kind, engine in (("policy", learner._policy), ("critic", learner._critic)):
        for name, weight in engine.weights() if engine else ():
            named[f"{kind}.{name}"] = weight.float().cpu().clone()
    return named


def updates(learner, config, count, *, first=0, splits=None):
    """Take optimizer steps; their figures. `splits` seeds random budgets of tokens."""
    rng = random.Random(splits)
    figures = []
    for number in range(first, first + count):
        made = tiny.experience(advantages=tiny.noise((8, 6), 20 + number))
        if splits is not None:
            object.__setattr__(config.backend, "micro_batch_tokens", rng.choice([1, 12, 25, 200]))
        figures.append(update(learner, mine(made), config).values())
    return figures


def settings(learns):
    """Settings of what learns: a `separate` critic or a `shared` trunk, or adapters of them."""
    lora = 3 if learns.startswith("lora") else 0
    critic = learns.removeprefix("lora").strip() or "separate"
    return tiny.settings(critic=critic, lora=lora, entropy_coef=0.1, **RATES)


def left(cases):
    """For each case: how many of what its engines held live on when they are closed, and of all."""
    found = {}
    for case in cases:
        learner = built(case)[0]
        updates(learner, settings(case[2]), 1)
        held = [one for one in (learner._policy, learner._critic) if one]
        known = [weakref.ref(one._engine) for one in held]
        known += [weakref.ref(one._engine.optimizer) for one in held]
        for one in held:
            parameters = list(one.module.parameters())
            pieces = [parameter.ds_tensor for parameter in parameters if case[0] == 3]
            known += map(weakref.ref, pieces or parameters)
        learner.close()
        del learner, held, one, parameters, pieces
        gc.collect()
        found[case] = sum(ref() is not None for ref in known), len(known)
    return found


def trained(cases, count, splits=None):
    """For each (stage, offload, what learns, dtype): figures of each update, and the weights."""
    found = {}
    for case in cases:
        learner, config = built(case)
        figures = updates(learner, config, count, splits=splits)
        found[case] = figures, full(learner)
    return found


def resumed(pairs):
    """For each (case that saves, case that goes on): what a third update gives on both sides."""
    found = {}
    for saver, other in pairs:
        one, going_on = (built(case, seed) for case, seed in ((saver, 0), (other, 7)))
        updates(*one, 2)
        states = gather(one[0].state_dict())
        before = full(one[0])
        going_on[0].load_state_dict(states)
        after = full(going_on[0])
        figures = [updates(*each, 1, first=2) for each in (one, going_on)]
        weights = [full(each[0]) for each in (one, going_on)]
        found[saver, other] = (before, after), figures, weights, states
    return found


def built(case, seed=0):
    """A learner of a case, and its settings."""
    stage, offload, learns, dtype = case
    config = settings(learns)
    engine = engines(stage, offload, getattr(torch, dtype))
    base = tiny.llama() if config.model.lora.rank else None  # what no state holds
    return tiny.learner(config, seed=seed, model=base, engine=engine), config


def taken_up(states, cases):
    """Figures of a third update by learners that go on from states saved elsewhere."""
    found = {}
    for case in cases:
        learner, config = built(case, seed=7)
        learner.load_state_dict(states)
        found[case] = updates(learner, config, 1, first=2)
    return found


def poisoned(cases):
    """For each (case, where): what a NaN on rank 1 alone raises here, and if no weight moved.

    A bad `loss` comes from the rows. A bad `gradient` of a finite loss is what a bad kernel, or a
    sum that is too large, makes it.
    """
    found = {}
    for case, where in cases:
        learner, config = built(case)
        updates(learner, config, 1)
        before = full(learner)
        rows = mine(tiny.experience())
        if where == "loss" and dist.get_rank() == 1:
            rows = replace(rows, returns=rows.returns + torch.nan)
        backward = _poison(learner._policy) if where == "gradient" else learner._policy.backward
        said = None
        try:
            with mock.patch.object(learner._policy, "backward", backward):
                update(learner, rows, config)
        except NonFiniteError as error:
            said = str(error)
        after = full(learner)
        found[case, where] = said, all(torch.equal(before[name], after[name]) for name in before)
    return found


def _poison(engine):
    backward = engine.backward

    def multiplied(loss):
        bad = dist.get_rank() == 1
        if bad:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        backward(loss)

    return multiplied


def rested(cases, count):
    """For each case: what updates leave behind without, and with moments away between them."""
    return {case: [_rested(case, count, leaves) for leaves in (False, True)] for case in cases}


def _rested(case, count, leaves):
    learner, config = built(case)
    object.__setattr__(config.backend, "offload_between_phases", leaves)
    for engine in (learner._policy, learner._critic):
        engine._can_offload = leaves  # as on a GPU
    rows, figures, seen = mine(tiny.experience()), [], []
    for number in range(count):
        with learner.offloaded():
            seen.append(learner.logprobs(rows.inputs, rows.response_mask))
        figures += updates(learner, config, 1, first=number)
    with learner.offloaded():
        seen.append(learner.values(rows.inputs))
    return figures, seen, full(learner), learner.state_dict()
