"""Tiny parts for collector tests: environments, a scripted generator, an actor."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmgym.data.tasks import TaskSampler
from llmgym.env import LLMEnv, SingleTurnEnv
from llmgym.messages import Reply, Task
from llmgym.rewards.base import per_sample
from llmgym.vector import LLMVectorEnv
from trainers.collect.rollout import TextCollector
from trainers.collect.rollout_writer import TextParts
from trainers.config import Config, EnvConfig
from trainers.distributed.collectives import World
from trainers.generation.base import Generator, GeneratorParts, Response
from trainers.generation.transformers import TransformersGenerator
from trainers.models.causal_lm import CausalPolicy
from trainers.models.chat import ChatFormat, train_tokenizer

WORDS = ["abc abd bcd cab dab", "user says hello hello", "what is 1 + 2 ?"]


def chat_format(vocab_size=300):
    tokenizer = train_tokenizer(WORDS * 4, vocab_size)
    return ChatFormat(tokenizer, eos_token_ids=[tokenizer.eos_token_id])


def llama(chat, **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(chat.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, **changes))


def tasks(count=6, prompt="ask {}"):
    return [Task(id=f"t{i}", prompt=prompt.format(i), source="test") for i in range(count)]


def single_turn(score, num_envs=4, bounds=(0.0, 1.0), **kwargs):
    def make():
        return SingleTurnEnv(tasks(**kwargs), per_sample(score), reward_bounds=bounds)

    return LLMVectorEnv([make] * num_envs)


class Talk(LLMEnv):
    """Answers "more k" after turn k and pays k + 1; ends with turn `turns`."""

    def __init__(self, turns=3, reward=None, **kwargs):
        super().__init__(tasks(), reward, **kwargs)
        self.turns = turns

    def prompt(self, task):
        self.turn = 0
        return task.prompt

    def reply(self, response):
        self.turn += 1
        done = self.turn >= self.turns
        return Reply(messages=f"more {self.turn}", done=done, reward=float(self.turn))


def config(envs=({"id": "llmgym/Arithmetic-v0"},), **sections):
    base = {
        "ppo": {"num_prompts": 2, "samples_per_prompt": 2, "kl_placement": "none"},
        "generation": {"max_new_tokens": 8},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    default = Config()
    made = {name: type(getattr(default, name))(**values) for name, values in base.items()}
    return Config(envs=[EnvConfig(**env) for env in envs], **made)


class Scripted(Generator):
    """Says, for each sequence index, the next of its responses: ids, ended by "stop" or not."""

    exact = True

    def __init__(self, script, eos, version=0, logprob=-1.0):
        self.script = {index: list(turns) for index, turns in script.items()}
        self.eos, self.version, self.logprob = eos, version, logprob
        self.asked = []

    @property
    def policy_version(self):
        return self.version

    def generate(self, requests, sampling):
        self.asked.append(list(requests))
        return [self._say(one) for one in requests]

    def _say(self, request):
        ids = tuple(self.script[request.index].pop(0))
        return Response(
            token_ids=ids,
            logprobs=(self.logprob,) * len(ids),
            finish_reason="stop" if ids[-1] in self.eos else "length",
            policy_version=self.version,
        )

    def load_weights(self, weights, version):
        self.version = version

    def sleep(self):
        pass


class Actor:
    """Scores with a policy's own forward; values count the positions."""

    def __init__(self, policy, version=0):
        self.policy_module, self.policy_version = policy, version

    @torch.no_grad()
    def logprobs(self, inputs, response_mask):
        return self.policy_module(inputs, response_mask).logprobs

    def values(self, inputs):
        rows, width = inputs.actions.shape[:2]
        return torch.arange(width + 1.0).expand(rows, -1) + 100 * torch.arange(rows)[:, None]

    def weights(self):
        return iter(self.policy_module.named_parameters())


def policy(chat, **changes):
    return CausalPolicy(llama(chat, **changes), temperature=1.0, chunk=512)


def scripted(chat, script, **kwargs):
    return Scripted(script, chat.eos_token_ids, **kwargs)


def collector_of(chat, envs, generator, settings, reference=None, world=None):
    world = world or World()
    made = TextParts(
        envs=envs,
        generator=generator,
        chat=chat,
        sampler=TaskSampler(6, seed=1, rank=world.rank, world_size=world.size),
        reference=reference,
    )
    return TextCollector(made, settings, world)


def written_by(policy, chat, **kwargs):
    parts = GeneratorParts(
        policy=policy,
        eos_token_ids=chat.eos_token_ids,
        pad_token_id=chat.pad_token_id,
        batch_size=64,
        **kwargs,
    )
    return TransformersGenerator(parts)


def length_score(sample):
    return len(sample.response.token_ids) / 8


def by_task(sample):
    return float(sample.task.id[1:])


def rollout_of(chat, *, settings=None, score=length_score, **kwargs):
    actor = Actor(policy(chat, **kwargs))
    generator = written_by(actor.policy_module, chat)
    collector = collector_of(chat, single_turn(score), generator, settings or config())
    return collector, collector.collect(actor, 0)
