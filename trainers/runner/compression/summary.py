"""What a compression came to: compression.json in its folder, and lines for a person."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.redaction.text_files import write
from trainers.runner.compression.checking import CheckedModel

SUMMARY_FILE = "compression.json"


def summary_of(checked: CheckedModel, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of compression.json.

    Args:
        checked: model and settings.
        results: of the stages, by name.
    """
    search, report = results["search"], results["report"]
    return {
        "dense": checked.source,
        "budget": checked.settings.shares,
        "texts": results["texts"],
        "latency_fit": results["latency"].get("fit"),
        "machine": results["latency"].get("record"),
        "searchers": {
            name: {
                "selection_kl": outcome["kl"],
                "report_kl": report["kl"].get(name),
                "evaluations": outcome["evaluations"],
                "seconds": outcome["seconds"],
                "plan": outcome["plan"],
            }
            for name, outcome in search.items()
        },
        "model": results["model"],
        "int8": results["int8"],
        "measured_latency": results["measure"],
        "report_kl": report["kl"]["model"],
        "sliced_kl": report["kl"].get("sliced"),
        "recover": checked.settings.recover,
        "scores": report["scores"],
        "kept": report["kept"],
        "front": report["front"],
        "env": checked.config.env.id if checked.has_env else None,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write compression.json in one step."""
    write(folder / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")


def summary_lines(folder: Path, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a compression came to, for a person."""
    model, measured = summary["model"], summary["measured_latency"]
    yield (
        f"size      {model['dense_parameters'] / 1e6:.2f} -> {model['parameters'] / 1e6:.2f} M "
        f"parameters, {model['bytes'] / 1e6:.1f} MB in {model['layers']} layers"
    )
    yield (
        f"latency   {measured['median']:.3f} of the dense model's, measured "
        f"[{measured['low']:.3f}, {measured['high']:.3f}]"
    )
    for kind, share in summary["budget"].items():
        yield f"budget    {kind}={share:g}, modelled {model['modelled'][kind]:.3f}"
    others = ", ".join(
        f"{name} {row['report_kl']:.4f}"
        for name, row in summary["searchers"].items()
        if row["report_kl"] is not None
    )
    yield f"KL        {summary['report_kl']:.4f} nats per token on report; by searcher: {others}"
    if summary["sliced_kl"] is not None:
        yield f"recovery  KL {summary['sliced_kl']:.4f} before {summary['recover']}"
    if scores := summary["scores"]:
        dense, smaller = scores["dense"], scores["model"]
        yield (
            f"score     {dense['mean']:.3f} -> {smaller['mean']:.3f} [{smaller['low']:.3f}, "
            f"{smaller['high']:.3f}] on held-out tasks of {summary['env']}"
        )
    yield f"model     {folder / 'model'}"
    if int8 := summary["int8"]:
        yield (
            f"int8      {folder / 'model-int8'}, {int8['bytes'] / 1e6:.1f} MB, logits within "
            f"{int8['difference']:.1%} of the largest"
        )
