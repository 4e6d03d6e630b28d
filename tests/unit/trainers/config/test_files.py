"""Settings in files: every trap, every message, and the round trip."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.trainers.config.refusal import refused
from trainers.config import Config, RewardConfig, schema
from trainers.config.files import (
    changed_settings,
    dump,
    layer,
    preset,
    presets,
    purpose,
    read,
    read_document,
    typed,
)
from trainers.config.settings import CONFIG_ROOT
from trainers.config.yaml_format import Loader
from trainers.errors import ConfigError
from trainers.redaction.redact import hidden


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write my.yaml in an empty working folder and give its relative path."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="my.yaml"):
        Path(name).write_text(text, encoding="utf-8")
        return Path(name)

    return write


def test_nothing_given_is_the_default():
    assert read() == Config()


def test_unknown_key_names_path_place_and_nearest_name(written):
    file = written("run:\n  name: a\n  seed: 1\nppo:\n  gamma: 1.0\n\n  clp_low: 0.2\n")
    assert refused([file]) == (
        "ppo.clp_low is not a setting (my.yaml, line 7). Did you mean ppo.clip_low?\n"
        "All of them: llmgym schema --field ppo"
    )


def test_wrong_type_says_what_it_must_be_and_what_was_got(written):
    file = written("run:\n  name: a\nppo:\n  learning_rate: 3e-6x\n")
    assert refused([file]) == (
        'ppo.learning_rate must be a number, got the text "3e-6x" (my.yaml, line 4).'
    )


@pytest.mark.parametrize("word", ["no", "off", "on", "yes", "No", "OFF"])
def test_yamls_own_booleans_are_refused_where_text_is_meant(written, word):
    file = written(
        f"envs:\n  - id: a/B-v0\n    kwargs:\n      split: {word}\nrun:\n  dir: {word}\n"
    )
    got = "true" if word.lower() in ("on", "yes") else "false"
    for path, line in (("envs.0.kwargs.split", 4), ("run.dir", 6)):
        assert (
            f"{path} must be text, got {got} (my.yaml, line {line}): YAML reads no, off, on, yes "
            f'as true or false. Put it in quotes: "{word}"'
        ) in refused([file])


def test_true_and_false_are_arguments_like_any_other(written):
    file = written("envs:\n  - kwargs: {shuffle: true, strict: false}\n")
    assert read([file]).envs[0].kwargs == {"shuffle": True, "strict": False}


def test_out_of_range_says_the_range_and_recognises_a_percentage():
    assert refused([], {"ppo.clip_low": 20}) == (
        "ppo.clip_low must be above 0 and below 1, got 20. Did you mean 0.2?"
    )
    assert refused([], {"ppo.num_prompts": 0}) == "ppo.num_prompts must be at least 1, got 0."


def test_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ConfigError) as caught:
        preset("cartpoel")
    assert str(caught.value) == (
        f'no preset "cartpoel". Did you mean cartpole?\nPresets: {", ".join(presets())}'
    )


def test_every_mistake_is_named_at_once(written):
    file = written("ppo: {gama: 1, clip_low: 3, num_epochs: many}\nlog: {evry: 1}\n")
    said = refused([file])
    for path in ("ppo.gama", "ppo.clip_low", "ppo.num_epochs", "log.evry"):
        assert path in said


def test_a_contradiction_keeps_its_own_words():
    said = refused([], {"ppo.kl_coef": 0.1, "ppo.kl_placement": "none"})
    assert said == (
        "ppo.kl_coef 0.1 has no effect while ppo.kl_placement is none. Drop it, or set "
        "ppo.kl_placement reward."
    )


@pytest.mark.parametrize(("name", "value"), [("top_p", 0.9), ("top_k", 50)])
def test_training_samples_from_the_support_that_is_scored(name, value):
    said = refused([], {f"generation.{name}": value})
    assert said.startswith(f"generation.{name} must be")
    assert f"got {value}: narrowing the support makes every ratio wrong" in said
    assert f"llmgym eval --{name.replace('_', '-')}" in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ppo.critic", "sepparate", "must be separate, shared or none"),
        ("ppo.max_grad_norm", "big", "must be a number or null"),
        ("ppo.num_epochs", 1.5, "must be a whole number, got 1.5"),
        ("ppo.num_epochs", "3", 'must be a whole number, got the text "3"'),
        ("ppo.num_epochs", True, "must be a whole number, got true"),
        ("ppo.critic_reads_logprobs", 1, "must be true or false, got 1"),
        ("ppo.adam_betas", [0.9], "must have 2 entries, got 1"),
        ("run.name", 12, 'must be text, got 12. Put it in quotes: "12"'),
        ("run.name", "../up", "must be made of letters"),
        ("model", "gpt2", "Did you mean model.path?"),
        ("model.hidden_sizes", 64, "must be a list"),
        ("envs", [], "envs must have at least 1 entry, got 0"),
        ("envs.0.weight", 2.0, "is a share beside other environments, and there is no other"),
        ("envs.0.weights", 2.0, "envs.0.weights is not a setting"),
        ("envs.0.kwargs", [1], "must be a mapping"),
    ],
)
def test_a_wrong_value_is_never_repaired(name, value, words):
    said = refused([], {name: value})
    assert said.startswith(name)
    assert words in said


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-6", 3e-6), ("3.0e-6", 3e-6), ("1E5", 1e5), (".5", 0.5), ("1_000.0", 1000.0), ("2", 2.0)],
)
def test_a_number_is_a_number(written, text, value):
    assert read([written(f"ppo: {{learning_rate: {text}}}\n")]).ppo.learning_rate == value


@pytest.mark.parametrize("text", ["1:30", "2026-11-20", "007", "1.2.3", "0x1f", ".inf", ".nan"])
def test_what_plain_yaml_turns_into_something_else_stays_text(written, text):
    file = written(f"envs:\n  - kwargs: {{value: {text}}}\n")
    assert read([file]).envs[0].kwargs["value"] == text
    assert "must be a number" in refused([written(f"ppo: {{gamma: {text}}}\n")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ppo: {gamma: 1.0}\nppo: {gamma: 0.9}\n", 'my.yaml, line 2: the key "ppo" comes twice.'),
        ("a: &a [1]\nb: *a\n", "my.yaml, line 2: aliases are not read"),
        ("a: &a {b: *a}\n", "aliases are not read"),
        ("on: 1\n", 'the key on is not text, put it in quotes: "on"'),
        ("- 1\n", "my.yaml must be a mapping of settings, got [1]"),
        ("a: [1\n", "my.yaml, line 2"),
        ("a: 1\n---\nb: 2\n", "my.yaml"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(written, text, words):
    assert words in refused([written(text)])


def test_a_missing_file_is_named(written):
    assert (
        refused([Path("nope.yaml")]) == f"there is no file nope.yaml, looked for from {Path.cwd()}."
    )


@pytest.mark.parametrize("word", ["models/lora", "models/lora.yaml", "configs/models/lora.yaml"])
def test_a_layer_that_is_shipped_is_found_by_its_name_from_any_folder(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert layer(Path(word)) == CONFIG_ROOT / "models" / "lora.yaml"
    assert read([layer(Path(word))]).model.lora.rank == 16


def test_a_file_of_the_users_wins_over_one_that_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path("configs/models/lora.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("model: {lora: {rank: 3}}\n")
    assert layer(mine) == mine
    assert layer(Path("models/lora")) == CONFIG_ROOT / "models" / "lora.yaml"


@pytest.mark.parametrize(
    ("word", "meant"), [("lora", "models/lora"), ("configs/backends/zero4.yaml", "backends/zero3"),
                        ("quickstrat", "quickstart"), ("mi.yaml", "my.yaml")],
)  # fmt: skip
def test_a_file_that_is_nowhere_is_refused_with_what_was_perhaps_meant(
    word, meant, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        layer(Path(word))
    assert f" Did you mean -c {meant[:-1]}" in str(caught.value)
    assert str(caught.value).startswith(f"there is no file {word}, looked for from {tmp_path}")
    assert "backends/zero1" in str(caught.value).splitlines()[1]


def test_a_layer_that_is_named_as_a_preset_says_how_it_is_given():
    with pytest.raises(ConfigError, match=r'no preset "models/lora"\. It is a layer over one: -c'):
        preset("models/lora")


def test_mappings_merge_and_lists_replace(written):
    one = written("ppo: {gamma: 0.9, num_epochs: 2}\nrewards: [{name: a}, {name: b}]\n", "1.yaml")
    two = written("ppo: {gamma: 0.8}\nrewards: [{name: c}]\n", "2.yaml")
    config = read([one, two], {"ppo.num_epochs": 3})
    assert (config.ppo.gamma, config.ppo.num_epochs) == (0.8, 3)
    assert [one.name for one in config.rewards] == ["c"]


def test_the_place_named_is_of_the_file_that_won(written):
    one = written("ppo:\n  gamma: x\n", "1.yaml")
    two = written("\n\nppo:\n  gamma: y\n", "2.yaml")
    assert "(2.yaml, line 4)" in refused([one, two])
    assert "yaml" not in refused([one, two], {"ppo.gamma": "z"})


def test_new_arguments_and_entries_come_by_name():
    config = read(
        [],
        {
            "envs.0.kwargs.path": "p.jsonl",
            "rewards.0.kwargs.scale": 2,
            "rewards.1.name": "exact",
            "eval.kwargs.path": "t.jsonl",
        },
    )
    assert config.env.kwargs == {"path": "p.jsonl"}
    assert config.rewards[0].kwargs == {"scale": 2}
    assert config.rewards[1].name == "exact"
    assert config.eval.kwargs == {"split": "test", "path": "t.jsonl"}
    assert "The next entry of envs is envs.1" in refused([], {"envs.2.id": "a/B-v0"})
    assert "The next entry of rewards is rewards.1" in refused([], {"rewards.3.name": "a"})


def test_a_file_can_empty_what_the_default_holds(written):
    assert read([written("eval: {kwargs: {}}\n")]).eval.kwargs == {}


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("run.name", ["12"], "12"),
        ("model.path", ["null"], None),
        ("model.path", ["yes"], "yes"),
        ("ppo.learning-rate", ["3e-6"], 3e-6),
        ("ppo.whiten_advantages", ["false"], False),
        ("backend.gradient_checkpointing", [], True),
        ("generation.eos_token_ids", ["2"], [2]),
        ("generation.eos_token_ids", ["2", "3"], [2, 3]),
        ("generation.eos_token_ids", ["[2, 3]"], [2, 3]),
        ("generation.eos_token_ids", ["null"], None),
        ("data.columns", ["1", "b"], ["1", "b"]),
        ("data.columns", ["text,labels,id"], ["text", "labels", "id"]),
        ("model.hidden_sizes", ["64,32"], [64, 32]),
        ("ppo.adam_betas", ["0.9", "0.99"], [0.9, 0.99]),
        ("envs.0.kwargs.level", ["2"], 2),
        ("envs.0.kwargs.path", ["p.jsonl"], "p.jsonl"),
        ("envs.0.kwargs", ["{a: 1}"], {"a": 1}),
    ],
)
def test_words_are_read_with_the_type_of_their_setting(name, words, value):
    got = typed(name, words)
    assert (got, type(got)) == (value, type(value))


def test_all_settings_load_back_equal(tmp_path):
    overrides = {
        "run.name": "3e-6",
        "model.path": "007",
        "ppo.learning_rate": 1.5e-7,
        "ppo.adam_eps": 1e-12,
        "envs.0.kwargs": {"a": [1, {"b": "no"}], "c": None, "d": "1:30", "e": 1e22},
        "rewards.1.name": "math.boxed",
        "data.columns": ["yes", "2026-11-20"],
    }
    config = read([], overrides)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert read([file]) == config
    assert dump(config).startswith("# yaml-language-server: $schema=")
    assert "learning_rate: 1.5e-7" in dump(config)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(text, plain | text | st.lists(plain | text, max_size=3), max_size=4))
def test_any_arguments_load_back_equal(kwargs):
    assume(hidden(kwargs) == kwargs)  # a password does not load back
    config = read([], {"envs.0.kwargs": kwargs})
    assert yaml.load(dump(config), Loader)["envs"][0]["kwargs"] == kwargs


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_names_itself(name):
    config = read([preset(name)])
    assert config.run.name.replace("-", "_") == name
    assert purpose(preset(name)).endswith(".")


def test_differences_are_dotted():
    changed = read([], {"ppo.gamma": 0.99, "envs.0.kwargs.level": 2})
    assert sorted(changed_settings(changed, Config())) == [
        "envs.0.kwargs.level null -> 2",
        "ppo.gamma 1.0 -> 0.99",
    ]
    assert changed_settings(changed, changed) == []


def test_every_section_refuses_what_it_does_not_know():
    for leaf in schema.leaves():
        for depth in range(len(leaf)):
            if schema.names(leaf[:depth]):
                with pytest.raises(ConfigError, match="is not a setting"):
                    read([], {schema.dotted((*leaf[:depth], "zzzz")): 1})


def test_reading_a_file_does_not_load_it_twice(written):
    file = written("ppo: {gamma: 0.5}\n")
    document = read_document(file)
    assert document.tree == {"ppo": {"gamma": 0.5}}
    assert document.sources["ppo", "gamma"].line == 1


def test_two_sources_of_a_reward_are_refused():
    with pytest.raises(ValueError, match="one source"):
        RewardConfig(function="a:b", name="c")
    assert re.match(
        "a reward has one source", refused([], {"rewards": [{"function": "a:b", "name": "c"}]})
    )
