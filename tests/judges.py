"""Tiny reward models, each with a tokenizer, a template and a padding side of its own."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from llmgym.messages import Completion, Message, Sample, Task
from trainers.models.chat import train_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz .!?"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
)


def letters_tokenizer(**changes):
    """A tokenizer of single letters between [CLS] and [SEP], without a chat template."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *LETTERS]
    vocab = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", model_max_length=48, **{**named, **changes}
    )


def bert(folder, labels=("bad", "good"), **changes):
    """Save an encoder with two classes, its tokenizer without a template; return the folder."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=34,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    letters_tokenizer(**changes).save_pretrained(folder)
    return folder


def chatml_tokenizer():
    """A byte tokenizer with a template in the manner of ChatML, padding on the left."""
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template, tokenizer.padding_side = CHATML, "left"
    return tokenizer


def decoder(folder, kind="llama"):
    """Save a scalar reward model on a decoder, with a ChatML template; return the folder."""
    torch.manual_seed(4)
    tokenizer = chatml_tokenizer()
    size = {"vocab_size": len(tokenizer), "num_labels": 1, "initializer_range": 0.3}
    if kind == "gpt2":
        model = GPT2ForSequenceClassification(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=160, **size)
        )
    else:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
        model = LlamaForSequenceClassification(
            LlamaConfig(hidden_size=16, intermediate_size=32, max_position_embeddings=160,
                        **heads, **size)
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def said(response, *, prompt="what is it", role="user"):
    """A finished sample: one message, and the response."""
    task = Task(id=prompt, prompt=(Message(role, prompt),))
    return Sample(
        task=task, messages=(Message(role, prompt),), response=Completion(response), text=response
    )


RESPONSES = ("", "a cat", "the cat sat on the mat.", "no", "why not? it is good", "a cat", "z" * 30)
"""Ragged responses, the empty one and an equal pair among them."""
