"""The prompts of a measurement: plain English, cut to a number of tokens."""

from transformers import PreTrainedTokenizerFast

COUNT = 16
"""Different prompts."""
SENTENCES = (
    "A river begins as rain on high ground and reaches the sea by the lowest way it finds.",
    "The library opens at nine, and the reading room on the second floor closes at six.",
    "She counted 48 apples in the first box, 36 in the second, and wrote down the sum.",
    "Bread needs flour, water, salt and time; the oven should be hot before it goes in.",
    "The train to the coast leaves from platform 4 every 30 minutes, except on Sundays.",
    "A good map shows less than there is, so that what matters can be seen at a glance.",
    "In winter the lake freezes from its edges, and the ducks keep one place open.",
    "Light takes about eight minutes from the sun to the earth, and 1.3 seconds from the moon.",
)
"""What prompts are made of."""


def bench_texts(tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[str]:
    """Return prompts that are about `tokens` long, each different from its first token on."""
    texts = []
    for number in range(COUNT):
        turn = number % len(SENTENCES)
        words = " ".join((*SENTENCES[turn:], *SENTENCES[:turn]))
        text = f"{number}. {words}"
        while len(tokenizer(text)["input_ids"]) < tokens:
            text = f"{text} {words}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts.append(tokenizer.decode(ids[:tokens]))
    return texts
