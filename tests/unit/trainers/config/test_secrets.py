"""Settings without their secrets, and with them again from the environment."""

from dataclasses import replace

import pytest

from trainers.config import Config, EnvConfig, RewardConfig, RunConfig
from trainers.config.files import changed_settings, dump, flat, read
from trainers.config.secrets import secret_variables, with_secrets, without_secrets
from trainers.errors import ConfigError

KEY = "sk-test4242abcdEFGH"
SECRET = Config(rewards=[RewardConfig(function="a.py:b", kwargs={"api_key": KEY, "n": 2})])
VARIABLE = "LLMGYM_SECRET_REWARDS_0_KWARGS_API_KEY"


def read_back(tmp_path, config=SECRET):
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    return read([tmp_path / "config.yaml"])


def test_a_secret_setting_comes_back_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    assert secret_variables(SECRET) == [VARIABLE]
    assert with_secrets(read_back(tmp_path)) == SECRET
    assert with_secrets(SECRET) is SECRET


@pytest.mark.parametrize("value", [None, ""])
def test_a_secret_that_the_environment_lacks_is_named_with_its_variable(
    tmp_path, monkeypatch, value
):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=rf"rewards\.0\.kwargs\.api_key: .*\nexport {VARIABLE}="):
        with_secrets(read_back(tmp_path))


def test_a_secret_inside_a_longer_value_hides_the_whole_setting_from_a_resume(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OTHER_TOKEN", "t0ken-in-a-path")
    config = Config(envs=[EnvConfig(kwargs={"path": "https://x/t0ken-in-a-path/rows.jsonl"})])
    found = read_back(tmp_path, config)
    assert found.envs[0].kwargs["path"] == "https://x/(hidden)/rows.jsonl"
    with pytest.raises(ConfigError, match="export LLMGYM_SECRET_ENVS_0_KWARGS_PATH=VALUE"):
        with_secrets(found)


def test_what_is_shown_of_settings_holds_no_secret():
    kwargs = {"api_key": "another", "n": 2}
    other = replace(SECRET, rewards=[RewardConfig(function="a.py:b", kwargs=kwargs)])
    assert KEY not in str([dump(SECRET), flat(SECRET), without_secrets(SECRET)])
    assert changed_settings(SECRET, other) == []
    assert SECRET.digest == other.digest != Config().digest


def test_a_run_keeps_its_name_whatever_the_environment_holds(monkeypatch):
    monkeypatch.setenv("SESSION_TOKEN", "run-of-2026")
    assert (
        without_secrets(Config(run=RunConfig(name="run-of-2026")))["run"]["name"] == "run-of-2026"
    )
