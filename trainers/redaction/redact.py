"""Secrets, and how they are kept out of what a run writes. No torch.

By name: a setting called api_key, token, password and the like, or a header such as Authorization.
By value: what such a setting holds, and what the environment holds under such a name, wherever it
comes up: in a message, a traceback, a sampled text, plain or escaped as in JSON, a URL or a page.
"""

import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "(hidden)"
"""Stands for a secret in what is written; a setting that holds it fits any value."""

VARIABLE = "LLMGYM_SECRET_"
"""Prefix of the environment variables that settings take their secrets from."""

_WORD = (
    r"(api|access|private|client|signing|encryption|auth)_?keys?|access_?key_?id|secrets?"
    r"|secret_?keys?|secret_?access_?key|passwords?|passwd|passphrase|credentials?|authorization"
    r"|bearer|cookie"
)
_NAME = re.compile(rf"(.*_)?({_WORD}|token)")
_OF_TEXT = re.compile(
    r"(.*_)?(bos|eos|pad|unk|sep|cls|mask|begin|start|end|stop|special|think|turn)_token"
)
"""Tokens of a tokenizer."""
_PERHAPS = re.compile(r"(.*_)?(keys?|tokens?|auth)")
_RANDOM = re.compile(r"(?=(.*\d){3})(?=.*[A-Za-z])[\w+=~-]{16,}")
"""What a name that is only perhaps a secret's must hold: letters and digits, and no sentence."""
_VARIABLE_NAME = re.compile(
    r"(^|_)(key|apikey|token|secret|password|passwd|passphrase|credentials?|auth)s?(_|$)",
    re.IGNORECASE,
)
_MIN_LENGTH = 8
"""Shorter values of the environment are words that occur in any text."""
_PLAIN_WORD = re.compile(r"[a-z]{,16}|\d+")
_IN_URL = re.compile(
    r"(\w://[^/\s:@]*:|[?&](?:api_?key|key|token|access_token|secret|password)=)"
    r"([^/\s@]+(?=@)|(?<==)[^&#\s\"']+)",
    re.IGNORECASE,
)
"""A password before the host, or a key in the query."""
_IN_TEXT = re.compile(
    r"((?:--[\w.-]*(?:api[-_]?key|token|secret|password)[= ]"
    r"|\b(?:api_?key|token|secret|password)=))('[^'\"\n]*'|[^\s\"'\\&,;)]+)",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:Bearer|Basic|Token) +(\S.*)", re.IGNORECASE | re.DOTALL)
_known: set[str] = set()


def is_secret(name: str, value: str) -> bool:
    """Tell whether a setting of this name holds a secret.

    `key` and `end_token` may be anything: theirs is one if it looks like a key.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    if not value or value == HIDDEN:
        return False
    if _NAME.fullmatch(words) and not _OF_TEXT.fullmatch(words):
        return True
    return bool(_PERHAPS.fullmatch(words) and _RANDOM.fullmatch(value))


def remember_secrets(tree: Any) -> None:  # noqa: ANN401 - plain values of any depth
    """Remember the secrets of a tree of settings, so that `redact` knows them by value."""
    _known.update(value for value in _secrets(tree, "") if not value.isdigit())


def _secrets(tree: Any, name: str) -> Iterator[str]:  # noqa: ANN401
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _secrets(value, _inherited(name, key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _secrets(value, name)
    elif isinstance(tree, str):
        secrets = [tree] if is_secret(name, tree) else []
        secrets += [match[1] for match in map(_SCHEME.fullmatch, secrets) if match]
        secrets += [match[2] for match in _IN_URL.finditer(tree)]
        yield from (secret for secret in secrets if HIDDEN not in secret)


def _inherited(name: str, key: object) -> str:
    """Return the name that a value counts under: everything inside `credentials` is secret."""
    return name if is_secret(name, "any") else str(key)


def hidden(tree: Any, name: str = "") -> Any:  # noqa: ANN401
    """Return a tree of settings without the values that are secrets by their name."""
    if isinstance(tree, Mapping):
        return {key: hidden(value, _inherited(name, key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [hidden(value, name) for value in tree]
    if not isinstance(tree, str):
        return tree
    if is_secret(name, tree):
        return HIDDEN
    return _IN_URL.sub(rf"\g<1>{HIDDEN}", tree)


def without_values(text: str) -> str:
    """Return text without the values of known secrets."""
    return _without(text, _forms(frozenset(_known | set(_of_environment()))))


def _without(text: str, forms: tuple[tuple[str, ...], str]) -> str:
    long, short = forms
    for form in long:
        if form in text:
            text = text.replace(form, HIDDEN)
    return re.sub(rf"(?<!\w)({short})(?!\w)", HIDDEN, text) if short else text


def redact(text: str) -> str:
    """Return a message without secrets: known values, and words after --api-key and the like."""
    text = _IN_URL.sub(rf"\g<1>{HIDDEN}", without_values(text))
    return _IN_TEXT.sub(rf"\g<1>{HIDDEN}", text)


def redacted(tree: Any) -> Any:  # noqa: ANN401
    """Return a tree of plain values without known secrets in its texts and names."""
    return _redacted(tree, _forms(frozenset(_known | set(_of_environment()))))


def _redacted(tree: Any, forms: tuple[tuple[str, ...], str]) -> Any:  # noqa: ANN401
    if isinstance(tree, str):
        return _without(tree, forms)
    if isinstance(tree, Mapping):
        return {_redacted(key, forms): _redacted(value, forms) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_redacted(value, forms) for value in tree]
    return tree


def variable(path: Iterable[str | int]) -> str:
    """Return the environment variable that a setting takes its secret from."""
    return VARIABLE + re.sub(r"\W", "_", "_".join(map(str, path))).upper()


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) < _MIN_LENGTH or not _VARIABLE_NAME.search(name):
            continue
        is_path = value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))
        if not is_path and not _PLAIN_WORD.fullmatch(value):
            yield value


@lru_cache(maxsize=16)
def _forms(values: frozenset[str]) -> tuple[tuple[str, ...], str]:
    """Return what long values look like in files, the longest first, and a pattern of short ones.

    A short one counts as a whole word only, and below four characters not at all.
    """
    lines = {line for value in values for line in value.splitlines() if len(line) >= 16}
    long = {form for value in values | lines if len(value) >= _MIN_LENGTH for form in _form(value)}
    short = sorted(secret for secret in values if 4 <= len(secret) < _MIN_LENGTH)
    return tuple(sorted(long, key=len, reverse=True)), "|".join(map(re.escape, short))


def _form(value: str) -> set[str]:
    """Return a value as it is, and as JSON, Python, YAML, a shell, a URL and a page write it."""
    urls = {quote(value), quote(value, safe=""), quote_plus(value)}
    yaml = re.sub(r"\\u00(..)", lambda code: rf"\x{code[1].upper()}", json.dumps(value)[1:-1])
    return {
        value,
        *urls,
        *(re.sub(r"%..", lambda code: code[0].lower(), url) for url in urls),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        *(write(value)[1:-1] for write in (repr, ascii)),
        *(write(f'"{value}')[2:-1] for write in (repr, ascii)),  # beside quotes of the other kind
        yaml,
        value.replace("'", "''"),
        value.replace("'", "'\"'\"'"),
        html.escape(value),
        html.escape(value).replace("&#x27;", "&#39;"),
    }
