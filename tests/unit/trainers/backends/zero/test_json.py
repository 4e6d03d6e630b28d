"""DeepSpeed's JSON: what our settings say, and what a user's file may add. Nothing is run."""

import json

import pytest

from trainers.backends.zero import engine as deepspeed
from trainers.backends.zero import keys as zero_keys
from trainers.backends.zero.json import engine_json, frozen_json, tuning
from trainers.config import Config
from trainers.config.files import read
from trainers.errors import BackendError, ConfigError

ADAMW = {"lr": 1e-6, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "torch_adam": True}


def settings(**changes):
    return read([], {"backend.name": "deepspeed", **changes})


def with_file(tmp_path, content, **changes):
    """Settings with a DeepSpeed file of this content: an object, or text as it is."""
    file = tmp_path / "user.json"
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    file.write_text(text, encoding="utf-8")
    return settings(**{"backend.zero.config": str(file), **changes})


def built(config, *, is_bf16=False, on_gpu=False, more=None):
    return engine_json(
        config.backend.zero,
        ADAMW,
        max_grad_norm=config.ppo.max_grad_norm,
        is_bf16=is_bf16,
        on_gpu=on_gpu,
        tuning=more or {},
    )


def zero(stage, offload="none", **changes):
    return settings(**{"backend.zero.stage": stage, "backend.zero.offload": offload, **changes})


@pytest.mark.parametrize(
    ("stage", "offload", "sections", "is_fp32"),
    [
        (0, "none", set(), False),
        (1, "none", set(), True),
        (1, "optimizer", {"offload_optimizer"}, False),
        (2, "none", set(), True),
        (2, "optimizer", {"offload_optimizer"}, False),
        (3, "none", set(), True),
        (3, "optimizer", {"offload_optimizer"}, True),
        (3, "params", {"offload_optimizer", "offload_param"}, True),
    ],
)
def test_stage_and_offload_decide_sections_and_accumulation(stage, offload, sections, is_fp32):
    made = built(zero(stage, offload))
    section = made["zero_optimization"]
    assert section["stage"] == stage
    assert {key for key in section if key.startswith("offload")} == sections
    assert all(section[key]["device"] == "cpu" for key in sections)
    assert (made.get("data_types") == {"grad_accum_dtype": "fp32"}) is is_fp32


def test_the_engine_owns_the_boundary_and_nothing_is_averaged_twice():
    made = built(zero(2))
    assert made["managed_gradient_accumulation"] is True
    assert made["gradient_accumulation_steps"] == made["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.parametrize(("limit", "written"), [(0.5, 0.5), (None, 0.0)])
def test_no_clipping_is_written_down_because_left_out_it_would_be_one(limit, written):
    assert built(settings(**{"ppo.max_grad_norm": limit}))["gradient_clipping"] == written


@pytest.mark.parametrize(("stage", "on_gpu", "overlaps"), [(1, 1, 0), (2, 1, 1), (2, 0, 0)])
def test_communication_overlaps_where_it_can(stage, on_gpu, overlaps):
    made = built(zero(stage), on_gpu=bool(on_gpu))
    assert made["zero_optimization"]["overlap_comm"] is bool(overlaps)


def test_nvme_takes_what_is_offloaded():
    made = built(zero(3, "params", **{"backend.zero.nvme_path": "/fast"}), on_gpu=True)
    wanted = {"device": "nvme", "nvme_path": "/fast", "pin_memory": True}
    assert made["zero_optimization"]["offload_param"] == {**wanted, "max_in_cpu": 0}
    assert made["zero_optimization"]["offload_optimizer"] == wanted
    assert made["zero_optimization"]["stage3_max_live_parameters"] == 0
    in_memory = built(zero(3, "params"), on_gpu=True)["zero_optimization"]
    assert in_memory["stage3_max_live_parameters"] > 0
    assert made["zero_optimization"]["sub_group_size"] < in_memory["sub_group_size"]


def test_a_frozen_engine_has_no_optimizer_and_the_files_buckets():
    more = {"zero_optimization": {"stage3_prefetch_bucket_size": 7}}
    config = zero(3, "params")
    made = frozen_json(config.backend.zero, is_bf16=True, on_gpu=False, tuning=more)
    assert "optimizer" not in made
    assert "offload_optimizer" not in made["zero_optimization"]
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["zero_optimization"]["stage3_prefetch_bucket_size"] == 7
    assert made["bf16"] == {"enabled": True}


def test_a_file_is_laid_over_ours_and_leaves_the_rest(tmp_path):
    user = {
        "steps_per_print": 10,
        "bf16": {"enabled": "auto", "bf16_optimizer_states": True},
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"reduce_bucket_size": 5e6, "overlap_comm": "auto", "stage": 2},
    }
    more = tuning(with_file(tmp_path, user), 2)
    made = built(settings(), is_bf16=True, more=more)
    assert made["steps_per_print"] == 10
    assert made["zero_optimization"]["reduce_bucket_size"] == 5e6
    assert made["zero_optimization"]["overlap_comm"] is False
    assert made["zero_optimization"]["contiguous_gradients"] is True
    assert made["bf16"] == {
        "enabled": True,
        "check_grad_overflow": True,
        "bf16_optimizer_states": True,
    }
    assert made["gradient_accumulation_steps"] == 1


def test_what_is_built_is_new_each_time(tmp_path):
    more = tuning(with_file(tmp_path, {"aio": {"block_size": 1}}), 1)
    one = built(settings(), more=more)
    one["zero_optimization"]["stage"] = one["aio"]["block_size"] = 9
    other = built(settings(), more=more)
    assert other["zero_optimization"]["stage"] == 2
    assert other["aio"] == {"block_size": 1}


def test_without_a_file_nothing_is_added():
    assert tuning(Config(), 1) == {}


OFF = {"backend.zero.stage": 2, "backend.zero.offload": "optimizer"}


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        ({"gradient_cliping": 1.0}, {}, "gradient_cliping is no key that is known here. Did you "
                                        "mean gradient_clipping?"),
        ({"zero_optimization": {"stgae": 2}}, {}, "stgae is no key that is known here. Did you "
                                                  "mean stage?"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, {}, "overlap_comm must be true or false"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, {},
         "reduce_bucket_size must be a whole number, 0 or above, got \"big\""),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, {}, "0 or above, got -1"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, {},
         "zero_optimization.offload_param.device \"cpu\" contradicts \"none\", which is decided by "
         "backend.zero.offload"),
        ({"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}, {},
         "offload_optimizer.pin_memory has no effect while backend.zero.offload is none"),
        ({"zero_optimization": {"offload_optimizer": {"pin_memroy": True}}}, OFF,
         "pin_memroy is no key that is known here. Did you mean pin_memory?"),
        ({"zero_optimization": {"offload_optimizer": 3}}, OFF, "offload_optimizer must be an obj"),
        ({"zero_optimization": {"stage": 3}}, {}, "zero_optimization.stage 3 contradicts 2, which "
                                                  "is decided by backend.zero.stage"),
        ({"gradient_clipping": -1}, {}, "gradient_clipping -1 contradicts 1.0, which is decided "
                                        "by ppo.max_grad_norm"),
        ({"bf16": {"enabled": True}}, {"model.dtype": "float32"},
         "bf16.enabled true contradicts false, which is decided by model.dtype"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled true contradicts false"),
        ({"fp16": {"loss_scale": 0}}, {}, "loss_scale is no key that is known here"),
        ({"optimizer": {"type": "Muon"}}, {}, "optimizer.type must be \"AdamW\", got \"Muon\""),
        ({"optimizer": {"params": {"lr": 0.5}}}, {}, "optimizer.params.lr 0.5 contradicts 3e-06, "
                                                     "which is decided by ppo.learning_rate"),
        ('{"optimizer": {"params": {"lr": NaN}}}', {}, "NaN is no number"),
        ({"optimizer": {"params": {"momentum": 0.5}}}, {}, "params.momentum is no key"),
        ({"train_batch_size": 64}, {}, "train_batch_size 64 contradicts 2, which is decided by "
                                       "ppo.num_prompts"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, "train_micro_batch_size_per_gpu 4 contradicts"),
        ({"gradient_accumulation_steps": 8}, {}, "gradient_accumulation_steps 8 contradicts 1"),
        ({"managed_gradient_accumulation": False}, {}, "managed_gradient_accumulation false"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, OFF,
         "grad_accum_dtype fp32 at stage 2 with an offloaded optimizer skips every step"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, {"backend.zero.stage": 0},
         "grad_accum_dtype fp32 does not exist at stage 0"),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, {}, "must be \"fp32\" or \"bf16\""),
        ({"zero_optimization": {"overlap_comm": True}}, {"backend.zero.stage": 1},
         "overlap_comm works at stages 2 and 3"),
        ("{", {}, "cannot be read"),
        ("[]", {}, "must hold a JSON object"),
        ('{"aio": {}, "aio": {}}', {}, '"aio" stands there twice'),
    ],
)  # fmt: skip
def test_what_deepspeed_would_take_without_a_word_is_refused(tmp_path, content, changes, said):
    with pytest.raises(ConfigError) as caught:
        tuning(with_file(tmp_path, content, **changes), 2)
    assert said in str(caught.value)
    assert "user.json" in str(caught.value)


@pytest.mark.parametrize("key", sorted(zero_keys.REFUSED))
def test_each_refused_key_says_what_to_do(tmp_path, key):
    tree = True
    for name in reversed(key.split(".")):
        tree = {name: tree}
    with pytest.raises(ConfigError, match=r"is not for use here: .*(drop it|instead)"):
        tuning(with_file(tmp_path, tree), 2)


def test_every_mistake_is_said_at_once_with_its_line(tmp_path):
    user = {"wandb": {}, "zero_optimization": {"stage": 2, "overlap_com": True}}
    config = with_file(tmp_path, user)
    with pytest.raises(ConfigError) as caught:
        tuning(config, 2)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/user.json:2: wandb")
    assert second.startswith(f"{tmp_path}/user.json:5: overlap_com is no key")


def test_a_file_that_is_not_there_is_said(tmp_path):
    config = settings(**{"backend.zero.config": str(tmp_path / "none.json")})
    with pytest.raises(ConfigError, match=r"none.json cannot be read: No such file"):
        tuning(config, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend.zero.stage": 4}, "backend.zero.stage"),
        ({"backend.zero.stage": 2, "backend.zero.offload": "params"}, "needs stage 3: at stage 2"),
        ({"backend.zero.stage": 0, "backend.zero.offload": "optimizer"}, "needs stage 1 or higher"),
        ({"backend.zero.nvme_path": "/fast"}, "backend.zero.nvme_path /fast has no effect"),
        (
            {"backend.name": "torch", "backend.zero.config": "x.json"},
            "x.json is read by DeepSpeed only",
        ),
    ],
)
def test_settings_without_effect_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        settings(**changes)


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("offload", "tools", "said"),
    [
        ("optimizer", {"ninja"}, "no g++: torch's Adam takes the place of DeepSpeed's"),
        ("none", {"nvcc"}, "no ninja and no g++: torch's Adam takes the place of DeepSpeed's"),
        ("none", {"ninja", "g++"}, "no nvcc: torch's Adam takes the place of DeepSpeed's"),
        ("optimizer", {"ninja", "g++"}, None),
    ],
)
def test_a_missing_compiler_is_named_with_what_takes_its_place(
    offload, tools, said, monkeypatch, caplog
):
    monkeypatch.setattr(deepspeed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(deepspeed.shutil, "which", lambda tool: tool if tool in tools else None)
    assert deepspeed.needs_torch_adam(offload) is (said is not None)
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


@pytest.mark.deepspeed
def test_a_folder_on_nvme_that_cannot_be_written_is_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"is no folder that can be written\. Make it, or"):
            deepspeed.check_nvme(path)


@pytest.mark.deepspeed
def test_nvme_without_its_library_is_refused_with_the_package(tmp_path, monkeypatch):
    from deepspeed.ops import op_builder  # noqa: PLC0415

    lacks = staticmethod(lambda verbose: False)
    monkeypatch.setattr(op_builder.AsyncIOBuilder, "is_compatible", lacks)
    with pytest.raises(BackendError, match=r"needs libaio.*apt-get install libaio-dev"):
        deepspeed.check_nvme(tmp_path)


@pytest.mark.deepspeed
@pytest.mark.parametrize(("local_rank", "is_named"), [("0", True), ("1", False)])
def test_what_killed_runs_left_on_nvme_is_named_once_a_host(
    tmp_path, monkeypatch, caplog, local_rank, is_named
):
    from deepspeed.ops import op_builder  # noqa: PLC0415

    monkeypatch.setattr(
        op_builder.AsyncIOBuilder, "is_compatible", staticmethod(lambda verbose: True)
    )
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    deepspeed.check_nvme(tmp_path)
    assert not caplog.messages
    (tmp_path / "llmgym-abc").mkdir()
    deepspeed.check_nvme(tmp_path)
    assert any(f"rm -r {tmp_path}/llmgym-*" in said for said in caplog.messages) == is_named


def test_a_stage_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"backend\.zero\.stage must be .*0.*3, got 4"):
        zero(4)
