"""Chat templates in the manner of others, with a tokenizer that has their control tokens."""

from transformers import PreTrainedTokenizerFast

from trainers.models.chat import ChatFormat, train_tokenizer

TEXTS = ["What is 12 + 34? The sum is 46.", "Reverse the three tokens: a b c."] * 4
CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN = (
    "{% set ns = namespace(asked=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "<|im_start|>{{ m.role }}\n{% if m.role != 'assistant' %}{{ m.content }}"
    "{% elif loop.index0 < ns.asked %}{{ said }}"
    "{% elif '</think>' in m.content %}{{ m.content }}"
    "{% else %}<think>\n\n</think>\n\n{{ said }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the manner of Qwen3: the thinking of turns before the last question is stripped."""

FORGETS = "{% for m in messages[-1:] %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
"""Renders the last message alone."""


def chatml(template=CHATML, eos="<|endoftext|>", **special):
    """A tokenizer as others make them: a BOS it adds by itself, and a turn that ends otherwise."""
    tokenizer = train_tokenizer(TEXTS, 400).backend_tokenizer
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=eos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        **special,
    )
    ids = fast.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    return ChatFormat(fast, eos_token_ids=ids), fast
