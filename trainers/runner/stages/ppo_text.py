"""A text run: demonstrations where there are any, then PPO."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import final

from torch import nn

from llmgym.data.tasks import TaskList
from llmgym.env import SingleTurnEnv, core_env
from llmgym.rewards.context import longest_sequence
from trainers.backends.zero.setup import loading, save_json
from trainers.batch import Evaluation
from trainers.collect.environments import reward_of
from trainers.collect.mixture import prompt_envs, task_sampler
from trainers.collect.rollout import TextCollector
from trainers.collect.rollout_writer import TextParts
from trainers.config import Config
from trainers.config.environments import EnvFactory, check_data
from trainers.distributed.collectives import from_main
from trainers.evaluation.text import evaluate_text
from trainers.export.folders import copy_export, export_critic, export_policy
from trainers.generation.probe import NO_CACHE, check_rows, keeps_cache
from trainers.models.adapters import Adapter, adapter_of, check_lora, has_adapters
from trainers.models.causal_lm import CausalPolicy
from trainers.models.critic import Critic, SharedActorCritic
from trainers.models.loading import count_parameters, load_chat, load_policy, load_tokenizer
from trainers.models.packing import describe_rows
from trainers.models.shards import layer_by_layer
from trainers.runner.assemble import (
    Devices,
    card,
    check_folders,
    check_prompts,
    engines_json,
    text_models,
)
from trainers.runner.digests import reward_digests, tasks_digest, weights_digest
from trainers.runner.generators import check_generator, generator_of
from trainers.runner.loop import improve
from trainers.runner.session import Session
from trainers.runner.stages.sft import base_model
from trainers.runner.teachers import load_teacher, rollout_generator
from trainers.runner.text_envs import TextEnvs, sources_of

AHEAD = (
    "each rollout is written by weights one iteration older, while the one before is learned from; "
    "a resume writes the one that was under way anew, and is not bitwise exact"
)


def train_stage(
    session: Session, env: EnvFactory | str | None, reward: object | None
) -> dict[str, float]:
    """Run the stages; what can be refused is refused before weights load.

    Returns:
        The last iteration's figures by name; none if PPO was left out or never began.
    """
    return train_text(session, env, reward, improve)


def train_text(
    session: Session,
    env: EnvFactory | str | None,
    reward: object | None,
    learn: Callable[[Session, "TextTraining"], dict[str, float]],
) -> dict[str, float]:
    """Run the stages, the last of them as `learn` does; the rest is as of `train_stage`."""
    config = session.config
    check_data(config, has_env=env is not None)
    check_lora(config)
    check_generator(config)
    cached = check_rows(config.model.path)
    check_folders(config, session.folder.path)
    rewarded = reward_of(config, reward)
    if not config.ppo.num_iterations:
        _learn_only(session, env=env, reward=rewarded)
        return {}
    envs = TextEnvs.of(session, env=env, reward=rewarded)
    try:
        started = base_model(session, envs.sources, envs.held_out)
        if started is None:
            return {}
        training = TextTraining(session, started, envs=envs, cached=cached)
        try:
            figures = learn(session, training)
        finally:
            training.close()
        training.learner.close()
        return figures
    finally:
        envs.close()


def _learn_only(session: Session, *, env: EnvFactory | str | None, reward: object | None) -> None:
    """Run the supervised stage and no other."""
    config = session.config
    solved = config.data.path is None
    sources = sources_of(config, env=env, reward=reward) if solved else ()
    try:
        learned = base_model(session, sources)
    finally:
        for vector in sources:
            vector.close()
    if learned is not None:  # model/ is what every run ends with
        path = session.folder.path
        from_main(lambda: copy_export(path / "base", path / "model"))


@final
class TextTraining:
    """Policy, critic, reference, teacher, generator and environments of a text run.

    Args:
        session: of the run.
        started: settings whose `model.path` is what PPO starts from.
        envs: that are played.
        cached: what `check_rows` returned.
    """

    def __init__(
        self,
        session: Session,
        started: Config,
        *,
        envs: TextEnvs,
        cached: bool | None,
    ) -> None:
        config, world = session.config, session.world
        self._session, self._envs = session, envs
        self._chat = load_chat(started, load_tokenizer(started), env=config.env.label)
        self._note_turns()
        if started is config:  # else they were looked at before anything was learned
            check_prompts(config, self._chat, envs.sources)
            check_prompts(config, self._chat, envs.held_out)
        with loading(config):
            self._policy = load_policy(started, self._chat)
        cached = self._keeps_cache(cached)
        devices = Devices.of(config, world, self._policy)
        if world.is_main and devices.zero is not None:
            save_json(session.folder.path / "deepspeed.json", engines_json(config, devices.zero))
        self._longest = longest_sequence(self._policy.model.config)
        session.identify(
            tasks=tasks_digest(*envs.sources),
            tokenizer=self._chat.digest,
            **reward_digests(*envs.sources),
        )
        if config.ppo.kl_placement != "none" or config.model.lora.rank:
            session.identify(reference=weights_digest(self._policy.model))  # in no checkpoint
        models = text_models(config, self._policy, devices)
        self.learner, self._base = models.learner, started.model.path
        limits = config.generation
        one_turn = limits.max_prompt_tokens + limits.max_new_tokens
        make_generator = partial(
            generator_of,
            config,
            chat=self._chat,
            autocast=devices.autocast,
            max_tokens=one_turn if envs.is_single_turn else self._longest,
        )
        self.generator = make_generator(models.writer, cached=cached)
        self.teacher = load_teacher(session, self._chat, devices, self._policy)
        parts = TextParts(
            envs=envs.train,
            env_names=envs.names,
            generator=rollout_generator(self.teacher, self.generator, make_generator),
            chat=self._chat,
            sampler=task_sampler(config, envs.sources, world),
            reference=models.reference,
            teacher=None if config.distill.is_direct or not self.teacher else self.teacher.scores,
            max_tokens=self._longest,
            copy=models.copy,
        )
        self.collector = TextCollector(parts, config, world)
        self._note_parts(num_trained=models.num_trained)

    def _note_turns(self) -> None:
        """Say in the header how a dialogue of several turns continues, and what it can call."""
        notes: dict[str, list[str]] = {"turns": [], "tools": []}
        for vector in self._envs.sources:
            first = vector.envs[0]
            if not isinstance(first.unwrapped, SingleTurnEnv):
                opening, _ = first.reset(options={"index": 0})
                notes["turns"].append(self._chat.way_on(opening))
                notes["tools"] += filter(None, [self._chat.template.tools_note(opening)])
        for name, sentences in notes.items():
            for sentence in dict.fromkeys(sentences):
                self._session.note(name, sentence)

    def _note_parts(self, *, num_trained: int) -> None:
        """Say in the header what the run consists of."""
        session, config = self._session, self._session.config
        size = count_parameters(self._policy)
        if description := self.generator.describe():
            session.note("generation", description)
        if config.generation.ahead:
            session.note("ahead", AHEAD)
        if rows := describe_rows(self._policy.model):
            session.note("rows", rows)
        session.note("model", f"{size / 1e6:.1f} M parameters, critic {config.ppo.critic}")
        if num_trained < size:
            session.note("lora", f"{num_trained / 1e6:.2f} M parameters of them learn, "
                                 f"rank {config.model.lora.rank}")  # fmt: skip
        counts = Counter(prompt_envs(config))
        for place, (entry, source) in enumerate(zip(config.envs, self._envs.sources, strict=True)):
            number, kept = source.num_tasks(), config.eval.num_tasks
            there = self._envs.held_out[place].num_tasks() if self._envs.held_out else None
            kept = kept if there is None else min(kept, there)
            share = f", {counts[place]} prompts per batch" if len(config.envs) > 1 else ""
            session.note("tasks", f"{entry.label}: {number or 'endless'} train, "
                                  f"{kept} held out{share}")  # fmt: skip
            tasks = core_env(source.envs[0]).tasks
            if isinstance(tasks, TaskList) and tasks.read_as:
                session.note("format", tasks.read_as)
            if levels := entry.curriculum.levels:
                session.note("curriculum", f"{entry.label}: levels {', '.join(map(str, levels))}")

    def _keeps_cache(self, tried: bool | None) -> bool:
        """Tell whether the policy generates with a cache; try its weights if nothing else was."""
        if tried is None:
            with layer_by_layer(self._policy):
                tried = keeps_cache(self._policy.model, str(self._session.config.model.path))
        if not tried:
            self._session.note("generation", NO_CACHE)
        return tried

    def close(self) -> None:
        """End what writes text: the rollout that is written ahead, and the engine."""
        self.collector.stop()
        self.generator.close()

    def evaluate(self) -> list[Evaluation]:
        """Answer held-out tasks greedily, of each environment; empty where there are none."""
        if not self._envs.held_out:
            return []
        evaluations = []
        with self.learner.offloaded():
            self._sync()
            pairs = zip(self._session.config.alone, self._envs.held_out, strict=True)
            for config, held_out in pairs:
                evaluation = evaluate_text(
                    held_out,
                    self.generator,
                    chat=self._chat,
                    config=config,
                    world=self._session.world,
                    max_tokens=self._longest,
                )
                evaluations.append(evaluation)
            self.generator.sleep()
        return evaluations

    def _sync(self) -> None:
        """Give the generator the learner's weights; another one may write the rollouts."""
        if self.teacher is None or not self.teacher.writes:
            self.collector.sync(self.learner)
        elif self.generator.policy_version != self.learner.policy_version:
            self.generator.load_weights(self.learner.weights(), self.learner.policy_version)

    def export(self, name: str) -> None:
        """Write the current policy, or its critic under the name `critic`; a collective.

        Without a critic nothing is written under that name.
        """
        if name == "critic" and not self._session.config.ppo.has_critic:
            return
        fields = card(self._session, self._session.config.model.path)
        module, folder = self._whole(name), self._session.folder.path / name
        adapter = None if name == "critic" else self._adapter()
        if not self._session.world.is_main:
            return
        if name == "critic":
            assert isinstance(module, Critic | SharedActorCritic)
            export_critic(folder, module, fields)
        else:
            assert isinstance(module, CausalPolicy | SharedActorCritic)
            export_policy(folder, module.model, self._chat, fields, adapter=adapter)

    def _adapter(self) -> Adapter | None:
        """Return the adapters that were learned, on rank 0; a collective."""
        if not has_adapters(self._policy):
            return None
        return adapter_of(self._policy, self.learner.trained_policy(), self._base)

    def _whole(self, name: str) -> nn.Module:
        critic = self.learner.whole_critic() if name == "critic" else None
        return self.learner.whole_policy() if critic is None else critic
