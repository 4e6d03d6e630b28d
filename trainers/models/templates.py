"""The chat template that a tokenizer is given by `tokenizer.chat_template`: by name, or a file.

A base model has none. `plain` feeds it a prompt as it is; `chatml` puts the two tokens of ChatML
around each message, where its tokenizer has them.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from trainers.errors import ConfigError

PLAIN = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}"
    "{% elif not loop.last and loop.nextitem.role != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}{{ '\\n' }}{{ message.content }}"
    "<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
NAMED = {"plain": PLAIN, "chatml": CHATML}
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def template_of(tokenizer: PreTrainedTokenizerFast, setting: str, name: str) -> str:
    """Return the template that `tokenizer.chat_template` means.

    Args:
        tokenizer: what it is for; a named template begins with its BOS token if it puts one itself.
        setting: `plain`, `chatml` or a file.
        name: of the tokenizer, for the message.

    Raises:
        ConfigError: there is no such file, or the tokenizer lacks the tokens of ChatML.
    """
    if setting in NAMED:
        absent = [token for token in CHATML_TOKENS if token not in tokenizer.get_vocab()]
        if setting == "chatml" and absent:
            raise ConfigError(
                f"tokenizer.chat_template chatml needs the token {absent[0]}, which the tokenizer "
                f"of {name} does not have. Take --tokenizer.chat-template plain, or give a FILE "
                "whose tokens it has."
            )
        return _beginning(tokenizer) + NAMED[setting]
    file = Path(setting)
    if not file.is_file():
        raise ConfigError(
            f"tokenizer.chat_template {file} does not exist or is no file. Give a FILE, or one of "
            f"{', '.join(NAMED)}."
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokenizer.chat_template {file} cannot be read: {error}.") from error


def _beginning(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the source of what a tokenizer puts before any text by itself: BOS, and a space."""
    alone, bos = tokenizer("a").input_ids, tokenizer.bos_token
    if not bos or alone[:1] != [tokenizer.bos_token_id]:
        return ""
    bare, spaced = (
        tokenizer(f"{bos}{text}", add_special_tokens=False).input_ids for text in ("a", " a")
    )
    return "{{ bos_token }}{{ ' ' }}" if spaced == alone != bare else "{{ bos_token }}"
