"""Models loaded while they are shared out, and whole, side by side; run at two ranks."""

from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread

import torch
import torch.distributed as dist

from tests import tiny
from tests.distributed import zero
from tests.unit.trainers.models.families import ragged_inputs
from trainers.backends.zero.json import frozen_json
from trainers.config import LoRAConfig
from trainers.config.backend import ZeroConfig
from trainers.errors import ConfigError
from trainers.models.adapters import adapt
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic_folders import build_critic
from trainers.models.loading import load_causal_lm
from trainers.models.shards import Shard, full_weight, layer_by_layer, shared_out
from trainers.runner.digests import weights_digest


def differing(one, other):
    """Names of weights and buffers that are not the same in two modules, to the last bit."""
    mine, theirs = (dict(module.named_parameters()) for module in (one, other))
    assert mine.keys() == theirs.keys()
    found = [
        name
        for name, weight in mine.items()
        if not torch.equal(full_weight(weight), full_weight(theirs[name]))
        or weight.requires_grad != theirs[name].requires_grad
    ]
    buffers = dict(other.named_buffers())
    return found + [
        name for name, value in one.named_buffers() if not torch.equal(value, buffers[name])
    ]


def loaded(pairs):
    """For each (policy, critic) folder: what differs from a whole load, by what it is of."""
    inputs, mask = ragged_inputs()
    found = {}
    for folder, critic in pairs:
        both = []
        for load in (shared_out, nullcontext):
            with load():
                model = load_causal_lm(folder)
                both.append((model, build_critic(model), build_critic(model, critic)))
        (model, fresh, other), (was, was_fresh, was_other) = both
        assert all(isinstance(one, Shard) for one in model.parameters())
        result = {"critic": differing(fresh, was_fresh), "other": differing(other, was_other)}
        result["policy"] = differing(model, was)
        result["digest"] = weights_digest(model) != weights_digest(was)
        policies = [CausalPolicy(one, temperature=1.0, chunk=512) for one in (model, was)]
        with torch.no_grad(), layer_by_layer(policies[0]):
            one, other = (policy(inputs, mask).logprobs for policy in policies)
        result["figures"] = not torch.equal(one, other)
        assert all(isinstance(one, Shard) for one in model.parameters()), "shared out again"
        result["alone"] = bool(policies[0](inputs, mask).logprobs[mask].isfinite().any())
        for one in (model, was):
            adapt(one, LoRAConfig(rank=3), seed=0)
        result["adapters"] = differing(model, was)
        found[folder] = result
    return found


def stepped(pairs):
    """For each (folder, case), after either load: figures and weights of two updates."""
    from trainers.backends.zero.engine import frozen  # noqa: PLC0415 - where it is installed

    found = {}
    for folder, case in pairs:
        stage, offload, learns, dtype = case
        config, results = zero.settings(learns), []
        json = frozen_json(
            ZeroConfig(stage=stage, offload=offload),
            is_bf16=dtype == "bfloat16",
            on_gpu=False,
            tuning={"zero_optimization": zero.SHARD_ALL},
        )
        for load in (shared_out, nullcontext):
            with load():
                model, asked = (load_causal_lm(folder) for _ in range(2))
            reference = frozen(CausalPolicy(asked, temperature=1.0, chunk=512), json)
            made = zero.mine(tiny.experience())
            with torch.no_grad():
                said = reference(made.inputs, made.response_mask).logprobs
            engine = zero.engines(stage, offload, getattr(torch, dtype))
            learner = tiny.learner(config, model=model, engine=engine)
            figures = zero.updates(learner, config, 2)
            results.append((figures, {**zero.full(learner), "reference": said}))
        found[folder, case] = results
    return found


def said_of(folder):
    """What is said of a folder that is loaded while it is shared out; None: nothing."""
    try:
        with shared_out():
            load_causal_lm(folder)
    except ConfigError as error:
        return str(error)
    return None


def said_to_each(folders):
    """The same where each rank reads a folder of its own."""
    return said_of(folders[dist.get_rank()])


def growth(folder):
    """Most bytes that this process takes more while a model loads, and while it is placed."""
    from trainers.backends.zero.engine import frozen, import_deepspeed  # noqa: PLC0415 - where it is installed

    import_deepspeed()
    json = frozen_json(
        ZeroConfig(stage=3),
        is_bf16=False,
        on_gpu=False,
        tuning={"zero_optimization": zero.SHARD_ALL},
    )
    frozen(CausalPolicy(tiny.llama(), temperature=1.0, chunk=512), json)  # what comes once
    with peak() as loading, shared_out():
        model = load_causal_lm(folder)
    with peak() as placing:
        placed = frozen(CausalPolicy(model, temperature=1.0, chunk=512), json)
    assert placed is not None
    return loading[0], placing[0]


@contextmanager
def peak():
    """Yield a list that in the end holds the most bytes that were taken more inside."""
    begin, done, most = _taken(), Event(), [0]

    def watch():
        while not done.wait(0.0005):
            most[0] = max(most[0], _taken() - begin)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def _taken():
    """Bytes of this process in memory, without what is mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
