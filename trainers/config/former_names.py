"""Settings by the names that earlier versions had for them: read, and given their new names."""

from typing import Any

from trainers.config import schema


def rename_settings(tree: dict[str, Any]) -> None:
    """Give the settings of a config of 0.1 their new names, in place.

    `model.preset mlp` without a `model.path` is `run.kind control`; beside a path it meant nothing.
    `ppo.whiten_advantages true`, which every config of 0.1 holds, is the default with a critic.
    """
    model, run, ppo = (schema.as_mapping(tree.get(name)) or {} for name in ("model", "run", "ppo"))
    if ppo.get("whiten_advantages") is True and ppo.get("advantage", "gae") == "gae":
        del ppo["whiten_advantages"]
    if model.get("preset") == "mlp":
        del model["preset"]
        if model.get("path") is None:
            tree["run"] = {"kind": "control", **run}
