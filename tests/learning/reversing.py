"""Reverse three letters: a tiny transformer that knows nothing, and the settings it learns with."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainers.config.files import read

PAD, END, ASK, ANSWER = "<pad>", "<end>", "<ask>", "<answer>"
TOKENS = [PAD, END, ASK, ANSWER, *"abcdefgh"]
TEMPLATE = (
    f"{{% for message in messages %}}{ASK} {{{{ message.content }}}} {{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ANSWER}{{% endif %}}"
)


def letters_tokenizer():
    """One token a letter: what is decoded has a space between two of them."""
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[ASK, ANSWER],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def write_model(folder, seed):
    """Write a model folder: a GPT-2 of two layers with random weights, and its tokenizer."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(TOKENS),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=16,
        initializer_range=0.1,
        pad_token_id=TOKENS.index(PAD),
        eos_token_id=TOKENS.index(END),
        bos_token_id=TOKENS.index(END),
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)


def settings(folder, seed, **changes):
    """A run of PPO in `folder` from random weights, without demonstrations."""
    write_model(folder / "random", seed)
    return read(
        [],
        {
            "run.dir": str(folder),
            "run.name": "reverse",
            "run.seed": seed,
            "model.path": str(folder / "random"),
            "envs.0.id": "llmgym/ReverseTokens-v0",
            "generation.max_prompt_tokens": 8,
            "generation.max_new_tokens": 4,
            "ppo.num_iterations": 24,
            "ppo.num_prompts": 128,
            "ppo.samples_per_prompt": 2,
            "ppo.num_epochs": 4,
            "ppo.num_minibatches": 2,
            "ppo.learning_rate": 2.0e-3,
            "ppo.critic_learning_rate": 2.0e-3,
            "ppo.entropy_coef": 0.02,
            "ppo.lr_schedule": "linear",
            "ppo.target_kl": None,
            "ppo.missing_eos_penalty": 0.5,
            "ppo.kl_placement": "none",
            "eval.every": 8,
            "eval.num_tasks": 512,
            "checkpoint.every": 0,
            **changes,
        },
    )


def partial(response, answer):
    """Pay for each letter in its place; a letter too many takes from every one."""
    said, wanted = response.split(), answer.split()
    right = sum(one == other for one, other in zip(said, wanted, strict=False))
    return right / max(len(said), len(wanted))


def accuracy(evaluation):
    """The share of held-out words answered exactly, whatever the reward of training was."""
    exact = [row["completion"].split() == row["prompt"].split()[::-1] for row in evaluation.rows]
    return sum(exact) / len(exact)
