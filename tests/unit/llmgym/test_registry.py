"""Ids, addresses and plugins: found by name, or refused with the next thing to try."""

import json
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

import llmgym
from llmgym import registry
from llmgym.errors import EnvContractError, LLMGymError, PluginError

TOYS = Path(__file__).parent / "toys.py"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package with these files; it can be imported until the test ends."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text="", entry_points=None):
        (tmp_path / f"{name}.py").write_text(text)
        if entry_points:
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(entry_points)
        return name

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]
    for id in [id for id in gym.registry if id.startswith("plug/")]:
        del gym.registry[id]
        registry._TAGS.pop(id, None)


PLUGIN = f"import llmgym\nllmgym.register('plug/Say-v0', {f'{TOYS}:say'!r}, tags=['toy'])\n"


def test_the_built_in_ids_are_registered_and_tagged():
    assert {"llmgym/Arithmetic-v0", "llmgym/GSM8K-v0", "llmgym/Prompts-v0"} <= set(llmgym.ids())
    assert "llmgym/Arithmetic-v0" in llmgym.ids("procedural")
    assert "llmgym/GSM8K-v0" not in llmgym.ids("procedural")
    assert "math" in registry.tags("llmgym/GSM8K-v0")
    assert registry.tags("CartPole-v1") == ()


@pytest.mark.parametrize("id", llmgym.ids())
def test_every_id_builds_without_arguments_and_its_spec_serialises(id):
    env = gym.make(id)
    text = env.spec.to_json()
    json.loads(text)
    again = EnvSpec.from_json(text).make()
    assert again.reset(seed=3)[0] == env.reset(seed=3)[0]


def test_keywords_of_make_override_those_of_register(registered):
    id = registered(f"{TOYS}:guess", max_turns=2)
    assert gym.make(id).unwrapped.max_turns == 2
    assert gym.make(id, max_turns=5).unwrapped.max_turns == 5
    assert gym.make_vec(id, num_envs=1, max_turns=5).envs[0].unwrapped.max_turns == 5


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"digit": 3}, "arithmetic:make has no setting 'digit'; did you mean 'digits'"),
        ({"rewards": "exact"}, "did you mean 'reward'"),
        ({"zzz": 1}, "has no setting 'zzz'; it has digits"),
        ({"wrap": [{"name": "StripThink", "stat": "x"}]}, "did you mean 'start'"),
        ({"wrap": [{"nam": "StripThink"}]}, "A wrapper is given as"),
        ({"wrap": [{"name": "StripThought"}]}, "did you mean StripThink"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(kwargs, match):
    with pytest.raises(LLMGymError, match=match):
        gym.make("llmgym/Arithmetic-v0", **kwargs)
    with pytest.raises(LLMGymError, match=match):
        gym.make_vec("llmgym/Arithmetic-v0", num_envs=2, **kwargs)


def test_a_reward_is_named_in_plain_json():
    env = gym.make("llmgym/Arithmetic-v0", reward={"name": "constant", "kwargs": {"value": 0.5}})
    env.reset(seed=0)
    assert env.step("whatever")[1] == 0.5


@pytest.mark.parametrize(
    ("target", "kwargs", "match"),
    [
        ("no address", {}, "package.module:Name"),
        ("a:b", {"num_envs": 3}, "Gymnasium's own"),
        ("a:b", {"reward": lambda sample: 1.0}, "not plain JSON"),
        ("a:b", {"examples": ("a", "b")}, "not plain JSON"),
    ],
)
def test_a_registration_that_cannot_be_rebuilt_is_refused(target, kwargs, match):
    with pytest.raises(EnvContractError, match=match):
        llmgym.register("plug/Bad-v0", target, **kwargs)
    assert "plug/Bad-v0" not in gym.registry


@pytest.mark.parametrize(
    "id", ["plug/Bad-v0-hard", "a/plug/Bad-v0", "plug/Bad v0", "plug/", "/Bad-v0", ""]
)
def test_an_id_that_would_be_read_as_another_one_is_refused(id):
    with pytest.raises(EnvContractError, match="one slash, and the version at its end"):
        llmgym.register(id, "a:b")
    assert id not in gym.registry


def test_an_id_means_one_environment_and_the_same_registration_again_is_none(package):
    llmgym.register("plug/Twice-v0", "a:b", level=1)
    llmgym.register("plug/Twice-v0", "a:b", level=1)
    for target, kwargs in (("a:c", {"level": 1}), ("a:b", {"level": 2}), ("a:b", {})):
        with pytest.raises(EnvContractError, match=r"plug/Twice-v0 is registered already, as a:b"):
            llmgym.register("plug/Twice-v0", target, **kwargs)
    gym.register("plug/Theirs-v0", entry_point="x:y")
    with pytest.raises(EnvContractError, match="registered already, as x:y"):
        llmgym.register("plug/Theirs-v0", "a:b")
    assert gym.registry["plug/Twice-v0"].kwargs == {"target": "a:b", "level": 1}


def test_two_plugins_of_one_id_are_a_warning_and_one_of_them_stays(package):
    package("plug_module", PLUGIN, "[llmgym.envs]\na = plug_module\n")
    package(
        "plug_other",
        PLUGIN.replace("['toy']", "['toy'], level=2"),
        "[llmgym.envs]\nb = plug_other\n",
    )
    with pytest.warns(RuntimeWarning, match=r"plug/Say-v0 is registered already"):
        registry.load_entry_points()
    states = [registry._PLUGINS[module] for module in ("plug_module", "plug_other")]
    assert sorted(states) == ["broken", "loaded"]


def test_an_unknown_id_lists_near_matches_and_plugins(package, monkeypatch):
    monkeypatch.setattr(registry, "_PLUGINS", {})
    llmgym.load_plugins([package("plug_near", PLUGIN)])
    with pytest.raises(gym.error.NameNotFound) as caught:
        llmgym.spec("llmgym/Arithmetics-v0")
    text = str(caught.value)
    assert "Did you mean llmgym/Arithmetic-v0" in text
    assert "plug_near (loaded)" in text
    assert text.splitlines()[1] == (
        "If it is yours, name its module: --plugins my_package.envs. All that are there: "
        "llmgym envs list"
    )
    with pytest.raises(gym.error.NameNotFound, match=r"'a/Chess-v0'\. Plugins: plug_near"):
        llmgym.spec("a/Chess-v0")


def test_a_known_id_gives_its_spec_also_through_its_module(package):
    assert llmgym.spec("llmgym/Arithmetic-v0").id == "llmgym/Arithmetic-v0"
    name = package("plug_spec", PLUGIN)
    assert llmgym.spec(f"{name}:plug/Say-v0").id == "plug/Say-v0"
    env = gym.make(f"{name}:plug/Say-v0")
    env.reset(seed=0)
    assert env.step(env.unwrapped.solve())[1] == 1.0


def test_a_named_plugin_registers_and_a_broken_one_is_an_error(package):
    llmgym.load_plugins([package("plug_good", PLUGIN)])
    assert llmgym.ids("toy") == ["plug/Say-v0"]
    with pytest.raises(PluginError, match="plug_bad does not load: ZeroDivisionError"):
        llmgym.load_plugins([package("plug_bad", "1 / 0")])
    with pytest.raises(PluginError, match="plug_missing does not load: ModuleNotFoundError"):
        llmgym.load_plugins(["plug_missing"])


def test_installed_entry_points_are_loaded(package, monkeypatch):
    package("plug_module", PLUGIN, "[llmgym.envs]\nsay = plug_module\n")
    call = "import llmgym\ndef add():\n    llmgym.register('plug/Call-v0', 'a:b')\n"
    package("plug_call", call, "[llmgym.envs]\ncall = plug_call:add\n")
    registry.load_entry_points()
    assert {"plug/Say-v0", "plug/Call-v0"} <= set(gym.registry)
    assert registry._PLUGINS["plug_module"] == "loaded"


def test_an_installed_reward_gets_its_name(package, monkeypatch):
    rewards = registry.load("llmgym.rewards.base:REWARDS")
    monkeypatch.setattr("llmgym.rewards.base.REWARDS", dict(rewards))
    text = "from llmgym.rewards.base import per_sample\ndef long():\n"
    text += "    return per_sample(lambda sample: float(len(sample.text)))\n"
    package("plug_reward", text, "[llmgym.rewards]\nlength_of = plug_reward:long\n")
    registry.load_entry_points()
    env = gym.make("llmgym/Arithmetic-v0", reward="length_of")
    env.reset(seed=0)
    assert env.step("abc")[1] == 3.0


def test_a_broken_entry_point_is_a_warning_with_its_traceback(package):
    package("plug_broken", "raise OSError('no licence')", "[llmgym.envs]\nx = plug_broken\n")
    package("plug_works", PLUGIN, "[llmgym.envs]\ny = plug_works\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry.load_entry_points()
    (warning,) = [one for one in caught if "plug_broken" in str(one.message)]
    assert "Traceback" in str(warning.message)
    assert "OSError: no licence" in str(warning.message)
    assert "plug/Say-v0" in gym.registry
    assert registry._PLUGINS["plug_broken"] == "broken"


def test_a_plugin_that_ends_the_process_is_an_error_and_an_installed_one_a_warning(package):
    with pytest.raises(PluginError, match="plug_exit does not load: SystemExit: 0"):
        llmgym.load_plugins([package("plug_exit", "import sys\nsys.exit(0)")])
    package("plug_exits", "raise SystemExit", "[llmgym.envs]\nx = plug_exits\n")
    with pytest.warns(RuntimeWarning, match="plug_exits"):
        registry.load_entry_points()


@pytest.mark.parametrize("place", ["mine.py", "a folder/mine.py", "loop.py"])
def test_a_file_that_is_given_as_a_plugin_is_told_how_a_module_is_named(
    place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if place == "loop.py":
        (tmp_path / place).symlink_to(place)
    else:
        (tmp_path / place).touch()
    with pytest.raises(PluginError, match=f"{place} is a file.*its folder must lie on PYTHONPATH"):
        llmgym.load_plugins([place])
