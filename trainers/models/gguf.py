"""GGUF files: what transformers reads of one through the package `gguf`, as plain weights.

The one door to that package. A file holds configuration, tokenizer and quantized weights; what is
loaded of it is float32 and trains, saves and exports like a model from a folder.
"""

import copy
import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from trainers.errors import ConfigError

SPLITS_LIKE_GPT2 = {"gpt-2", "phi-2", "roberta-bpe", "mpt", "olmo", "jais", "trillion",
                    "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone",
                    "minerva-7b"}  # fmt: skip
"""Names of pre-tokenizers that are the byte-level one of GPT-2, which transformers falls back to.
Those that part digits are among them: their merges join none."""


def is_gguf(source: str) -> bool:
    """Tell whether a model's name is that of a GGUF file."""
    return source.lower().endswith(".gguf")


def import_gguf() -> Any:  # noqa: ANN401 - the module
    """Import gguf.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"a .gguf file is read by the package gguf ({error}).\n"
            'Install it with pip install "llmgym-rl[train,gguf]"'
        ) from error
    return gguf


def check_gguf(source: str) -> None:
    """Refuse a file that is not there, damaged, or that transformers would read wrongly.

    Raises:
        ConfigError: it is one of these, or the package gguf is missing.
    """
    import_gguf()
    _checked(source, Path(source).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _checked(source: str, stamp: int) -> None:
    del stamp  # part of the key only: a file that changed is read again
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(source)
        for kind in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():
            gguf.dequantize(kind.data[:1], kind.tensor_type)
    except NotImplementedError as error:
        raise ConfigError(
            f"{source} holds weights of a type that the package gguf cannot turn into numbers: "
            f"{error}. Take a file of another type, such as Q8_0."
        ) from error
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise ConfigError(
            f"{source} is damaged or no GGUF file: {error}. Copy or download it again."
        ) from error
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ConfigError(
            f"{source} scales its rotary positions by a tensor, rope_freqs.weight, which "
            "transformers leaves out: the model would compute something else. Take its Hugging "
            "Face folder."
        )


def read_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file, with the tokens of the file and no other.

    Raises:
        ConfigError: transformers would split text otherwise, or the file does not load.
    """
    check_gguf(source)
    fields = import_gguf().GGUFReader(source).fields
    kind, pre = (_text(fields, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind == "gpt2" and pre not in {*SPLITS_LIKE_GPT2, *_known_splits()}:
        raise ConfigError(
            f"{source} splits text by the pre-tokenizer {pre or '(not named)'}, which transformers "
            f"{transformers.__version__} does not know: its tokens would be others than the model "
            "learned. Set --tokenizer.path to the model's own tokenizer folder."
        )
    if "tokenizer.ggml.tokens" not in fields:
        raise ConfigError(
            f"{source} has no tokenizer. Set --tokenizer.path to the model's own tokenizer folder."
        )
    return _of_the_file(
        load_pretrained(AutoTokenizer, source), len(fields["tokenizer.ggml.tokens"].data)
    )


def _of_the_file(tokenizer: PreTrainedTokenizerFast, size: int) -> PreTrainedTokenizerFast:
    """Drop what transformers adds to the tokens of a file: <|endoftext|>, which nothing embeds."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    held = [token for token in described["added_tokens"] if token["id"] < size]
    if len(held) == len(described["added_tokens"]):
        return tokenizer
    described["added_tokens"], vocab = held, tokenizer.get_vocab()
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str) and vocab.get(token, size) < size
        },
    )


def _text(fields: Any, name: str) -> str:  # noqa: ANN401 - a reader's mapping
    return str(fields[name].contents()) if name in fields else ""


def _known_splits() -> set[str]:
    """Return the pre-tokenizers that this version of transformers builds by name."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def load_pretrained(kind: Any, source: str, **settings: Any) -> Any:  # noqa: ANN401 - Auto classes
    """Call `from_pretrained` of one of transformers' Auto classes, where the source may be GGUF.

    A GGUF file stands alone in a folder meanwhile: transformers would else mix it with a tokenizer
    or a template beside it.
    """
    if not is_gguf(source):
        return kind.from_pretrained(source, trust_remote_code=False, **settings)
    file = Path(source).resolve()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file)
        return kind.from_pretrained(folder, gguf_file=file.name, **settings)


def read_model(
    kind: Any,  # noqa: ANN401 - an Auto class
    source: str,
    **settings: Any,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Return a model with plain float32 weights, and what transformers says of their names."""
    if is_gguf(source) and (packed := getattr(transformers, "GgufConfig", None)) is not None:
        settings["quantization_config"] = packed(dequantize=True)
    settings |= {"dtype": torch.float32, "use_safetensors": True}
    model, report = load_pretrained(
        kind, source, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    return (as_plain(model) if is_gguf(source) else model), report


def as_plain(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model made from the configuration, holding the weights of one that was in GGUF.

    transformers saves no model that it read from GGUF. No weight is copied.
    """
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    for name, buffer in model.named_buffers():  # the angles of positions are in no state dict
        parent, _, leaf = name.rpartition(".")
        plain.get_submodule(parent)._buffers[leaf] = buffer
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain
