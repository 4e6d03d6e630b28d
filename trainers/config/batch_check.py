"""How ranks share an iteration of PPO: what does not divide among them is refused. No torch."""

from trainers.config.settings import Config
from trainers.errors import ConfigError


def check_batch(config: Config, ranks: int) -> None:
    """Refuse prompts that do not divide among ranks, and rows that do not among minibatches.

    Raises:
        ConfigError: says which, and what is nearest.
    """
    ppo = config.ppo
    if not ppo.num_iterations:
        return
    if ppo.num_prompts % ranks:
        below = ppo.num_prompts // ranks * ranks
        near = " or ".join(str(n) for n in (below, below + ranks) if n)
        raise ConfigError(
            f"ppo.num_prompts {ppo.num_prompts} x ppo.samples_per_prompt {ppo.samples_per_prompt} "
            f"= {ppo.num_episodes} episodes cannot be shared by {ranks} ranks. Nearest "
            f"ppo.num_prompts: {near}.\nllmgym plan --gpus {ranks} shows the whole arithmetic"
        )
    if config.is_control and not ppo.has_critic:
        return  # whole episodes: as many steps as they take
    rows = ppo.num_prompts * ppo.num_steps if config.is_control else ppo.num_episodes
    if rows % ppo.num_minibatches:
        raise ConfigError(
            f"{rows} rows of an iteration do not divide into ppo.num_minibatches "
            f"{ppo.num_minibatches}. Choose a divisor of {rows}."
        )
