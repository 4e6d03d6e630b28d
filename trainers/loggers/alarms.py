"""What an iteration's figures say is wrong, where something can be done about it. Pure."""

from collections.abc import Mapping

from trainers.config import Config


def _rewards(values: Mapping[str, float], config: Config) -> dict[str, str]:
    said = {}
    if failed := values.get("rewards/errors", 0.0):
        said["failed rewards"] = (
            f"{failed:g} rewards failed and were left out; above {config.ppo.max_error_rate:.0%} "
            "of a batch the run stops (--ppo.max-error-rate)."
        )
    return said


def _completions(values: Mapping[str, float], config: Config) -> dict[str, str]:
    said = {}
    limit = config.generation.max_new_tokens
    cut = values.get("completions/clipped_ratio", 0.0)
    if cut > 0.5:
        said["cut completions"] = (
            f"{cut:.0%} of completions stop at {limit} tokens. Their reward is of cut text. "
            f"Try --generation.max-new-tokens {2 * limit}."
        )
    if values.get("completions/eos_ratio") == 0.0:
        said["no end token"] = (
            "no completion ended by itself. Try --generation.eos-token-ids with the ids of this "
            "model's end tokens."
        )
    return said


def _learning(values: Mapping[str, float], config: Config, step: int) -> dict[str, str]:
    said = {}
    limit = config.ppo.target_kl
    moved = values.get("policy/approxkl_avg", 0.0)
    if limit is not None and moved > limit:
        said["large step"] = (
            f"the policy moved by {moved:.2g} nats an action, over ppo.target_kl {limit:g}; "
            f"later epochs are skipped. Try --ppo.learning-rate {config.ppo.learning_rate / 2:.1e}."
        )
    # Where all returns are nearly equal there is nothing to explain.
    spread = values.get("advantages/std", 1.0) > 0.05 * abs(values.get("value/return_mean", 0.0))
    if step >= 5 and spread and values.get("value/explained_var", 0.0) < 0.0:
        more = (
            f"--ppo.value-coef {2 * config.ppo.value_coef:g}"
            if config.ppo.critic == "shared"
            else f"--ppo.critic-learning-rate {2 * config.ppo.critic_learning_rate:.1e}"
        )
        said["critic worse than the mean"] = (
            "the critic explains less than the mean reward would (value/explained_var below 0). "
            f"Try {more}."
        )
    return said


def alarms(values: Mapping[str, float], config: Config, step: int) -> dict[str, str]:
    """Return what is wrong in iteration `step`: a short name, and a sentence with the remedy."""
    found = _rewards(values, config) | _completions(values, config)
    return found | _learning(values, config, step)
