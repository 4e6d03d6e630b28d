"""vLLM as the engine of a worker; the only file that imports vllm. Needs: torch and vllm.

Runs in vLLM's environment, where the trainers' other packages are not. Tokens in, tokens out: vLLM
is given no tokenizer, and every end token as a token that stops. Its log-probabilities are those
of the tempered distribution; its own default is those of the untempered one.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, final

# Before vllm is imported, which reads these once. One process: weights and tokens need no copies.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from trainers.generation.serving.protocol import Record, read_records
from trainers.generation.serving.worker import Finished

BACKEND = "llmgym_file"
OWN = frozenset(
    {
        "model", "tokenizer", "skip_tokenizer_init", "load_format", "dtype",
        "max_num_seqs", "logprobs_mode", "generation_config", "weight_transfer_config",
        "kv_cache_memory_bytes", "enable_sleep_mode", "disable_log_stats", "worker_extension_cls",
    }
)  # fmt: skip
"""Arguments of vLLM that the worker sets itself."""


@dataclass
class FileInit(WeightTransferInitInfo):
    """Nothing: a file needs no meeting."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """A weights file, whole, that this process can read."""

    path: str
    version: int


@final
class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):
    """vLLM's weight transfer by a file: of its own ones none works without a GPU."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._names = {name for name, _ in self.model.named_parameters()}
        self._tied = _tied(self.model)

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Do nothing."""

    def start_weight_update(self) -> None:
        """Make room for weights as a checkpoint holds them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load a file.

        Raises:
            ValueError: a weight of the model was not in it.
        """
        path = Path(update_info.path)
        records = read_records(path, update_info.version)
        loaded = self.model.load_weights(_tensors(path, records))
        lacking = sorted(self._names - set(loaded))
        if lacking:
            raise ValueError(f"no weights came for {lacking[0]}, one of {len(lacking)}")

    def finish_weight_update(self) -> None:
        """Put the weights in the form that kernels read."""
        finalize_layerwise_reload(self.model, self.model_config)
        # A head that shares its matrix counts as not loaded, and keeps what a CPU kernel packed of
        # the matrix before: vllm 0.32.0 then answers with the old head.
        for layer in self._tied:
            layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Do nothing."""


def _tied(model: torch.nn.Module) -> list[Any]:
    """Return the layers whose weight is that of a layer before them."""
    seen: set[int] = set()
    tied: list[Any] = []
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is None:
            continue
        if id(weight) in seen:
            tied.append(layer)
        seen.add(id(weight))
    return tied


def _tensors(path: Path, records: Sequence[Record]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor), each read as it is asked for."""
    with path.open("rb") as file:
        for record in records:
            file.seek(record.offset)
            content = bytearray(record.size)
            file.readinto(content)
            kind = getattr(torch, record.dtype)
            yield record.name, torch.frombuffer(content, dtype=kind).reshape(record.shape)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)


class Extension:
    """Nothing: where vLLM runs in several processes, each imports this file for its sake."""


@final
class VllmEngine:
    """One vLLM engine; all calls come from one thread.

    Args:
        llm: with dummy weights.
        stop: ids that end a response.
        allowed: ids that may be sampled; None: all.
    """

    def __init__(self, llm: LLM, *, stop: Sequence[int], allowed: Sequence[int] | None) -> None:
        self._llm, self._engine = llm, llm.llm_engine
        self._stop, self._allowed = list(stop), None if allowed is None else list(allowed)
        self._is_asleep = False
        self.name = engine_name()
        self.can_sleep = current_platform.is_sleep_mode_available()
        llm.init_weight_transfer_engine({"init_info": {}})

    def update(self, path: Path, version: int) -> None:
        """Load the weights of a file by start, update, finish; then forget all keys and values."""
        if self._is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.start_weight_update()
        info = {"path": str(path), "version": version}
        self._llm.update_weights({"update_info": info})
        self._llm.finish_weight_update(str(version))
        if self._is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self._is_asleep = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("keys and values of older weights are still in use")

    def add(self, key: int, request: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        """Take a request; vLLM raises ValueError where it exceeds the context."""
        greedy = sampling["greedy"]
        parameters = SamplingParams(
            temperature=0.0 if greedy else sampling["temperature"],
            top_p=sampling["top_p"],
            top_k=sampling["top_k"],
            seed=None if greedy else request["seed"],
            max_tokens=request["max_new_tokens"],
            stop_token_ids=self._stop,
            allowed_token_ids=self._allowed,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": request["token_ids"]}
        self._engine.add_request(str(key), prompt, parameters)

    def is_busy(self) -> bool:
        """Tell whether a request is unfinished."""
        return self._engine.has_unfinished_requests()

    def step(self) -> list[Finished]:
        """Write one token of each request that is being written."""
        finished: list[Finished] = []
        for output in self._engine.step():
            if output.finished:
                [response] = output.outputs
                ids = list(response.token_ids)
                rows = zip(response.logprobs, ids, strict=True)
                finished.append((int(output.request_id), ids, [row[i].logprob for row, i in rows]))
        return finished

    def abort(self, keys: Sequence[int]) -> None:
        """Drop requests."""
        self._engine.abort_request([str(key) for key in keys])

    def sleep(self) -> None:
        """Drop weights and cache."""
        self._llm.sleep(level=2)
        self._is_asleep = True


def engine_name() -> str:
    """Return vLLM's distribution and version."""
    [distribution, *_] = packages_distributions()["vllm"]
    return f"{distribution} {version(distribution)}"


def build_engine(described: Mapping[str, Any]) -> VllmEngine:
    """Build vLLM around a model that is described and has no weights yet.

    Args:
        described: `model`, a config.json; `engine`: dtype, limits, end tokens and vLLM's arguments.

    Raises:
        ValueError: this machine's kernels, or vLLM, cannot run the model.
    """
    settings = described["engine"]
    taken = sorted(OWN & settings["options"].keys())
    if taken:
        raise ValueError(f"generation.vllm.options may not set {taken[0]}: the run sets it")
    is_cpu = current_platform.is_cpu()
    if is_cpu:
        _check_head_size(described["model"])
    with tempfile.TemporaryDirectory(prefix="llmgym-model-") as folder:
        Path(folder, "config.json").write_text(json.dumps(described["model"]), encoding="utf-8")
        usual = {"enforce_eager": is_cpu, "max_model_len": settings["max_model_len"]}
        llm = LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype=settings["dtype"],
            max_num_seqs=settings["max_num_seqs"],
            kv_cache_memory_bytes=int(settings["cache_gb"] * 2**30),
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            worker_extension_cls=f"{__name__}.{Extension.__name__}",
            enable_sleep_mode=current_platform.is_sleep_mode_available(),
            disable_log_stats=True,
            **{**usual, **settings["options"]},
        )
    allowed = _allowed(settings["absent"], llm.llm_engine.model_config.get_vocab_size())
    return VllmEngine(llm, stop=settings["eos_token_ids"], allowed=allowed)


def _allowed(absent: Sequence[Sequence[int]], vocab_size: int) -> list[int] | None:
    """Return the ids that may be sampled; None: all."""
    banned = {token for first, end in absent for token in range(first, end)}
    return [token for token in range(vocab_size) if token not in banned] if banned else None


def _check_head_size(model: Mapping[str, Any]) -> None:
    """Refuse a head size that CPU kernels lack: they would end the process at the first request."""
    text = model.get("text_config") or model
    heads, width = text.get("num_attention_heads"), text.get("hidden_size")
    size = text.get("head_dim") or (width // heads if heads and width else None)
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size is not None and size not in sizes:
        known = ", ".join(map(str, sizes))
        raise ValueError(
            f"vLLM's CPU kernels take heads of {known}, and this model has heads of {size}. Use "
            "generation.engine transformers, a GPU, or another model: for a fresh one "
            "--model.dimensions.head-dim"
        )
