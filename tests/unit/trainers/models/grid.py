"""Tokenizers and chat templates of the kinds that people have, tiny, for laws that hold for all."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from tests.unit.trainers.models.templates import QWEN

TEXTS = ["The sum is 46. What is 12 + 34? Red. Green. Higher. Lower. user assistant model INST"] * 8
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
)
PLAIN_ADDED = ("<|User|>", "<|Assistant|>", "<think>", "</think>")
"""In the manner of DeepSeek and Qwen3: added tokens that control a template and are not special."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else "
    "m.role %}<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "zephyr": ZEPHYR, "inst": INST, "llama3": LLAMA3, "gemma": GEMMA,
    "qwen3": QWEN, "deepseek": DEEPSEEK,
}  # fmt: skip


def _bpe(texts, normalizer=None, pre_tokenizer=None):
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_too = [f"<0x{number:02X}>" for number in range(256)]
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_too],
        show_progress=False,
    )
    # Merges within words alone, as SentencePiece learns them.
    words = [f"\u2581{word}" for text in texts for word in text.split(" ")]
    backend.train_from_iterator(words, trainer)
    return backend


def _byte_level(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _unigram(texts):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = UnigramTrainer(
        vocab_size=120 if texts is TEXTS else 200,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=sorted({*"".join(texts), *"<>|/[]\nhbixy", "\u2581"}),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _metaspace(scheme):
    def made(texts):
        pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        return _bpe(texts, pre_tokenizer=pre_tokenizer)

    return made


def _prepend(texts):
    replaced = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    return _bpe(texts, normalizer=normalizers.Sequence(replaced))


BACKENDS = {
    "byte-level": _byte_level, "first": _metaspace("first"), "always": _metaspace("always"),
    "never": _metaspace("never"), "prepend": _prepend, "unigram": _unigram,
}  # fmt: skip


def tokenizer(backend, template, texts=TEXTS):
    """A fast tokenizer that holds every control token and names only those of text."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[backend](texts),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=TEMPLATES.get(template, template),
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(CONTROL), special_tokens=True)
    fast.add_tokens([AddedToken(one, normalized=False) for one in PLAIN_ADDED])
    return fast
