"""Write docs/results/speed.md and its picture, and hold the ratios against the baseline.

The page is made of what runs/bench keeps and, for all other rows, of what was measured before
(`measured.json`).
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib as mpl
import torch
import transformers

from scripts.bench import control, measured
from scripts.bench.measure import kept
from scripts.bench.measured import Result, fresh_result, result_of
from scripts.bench.places import COMMIT, ROOT
from scripts.bench.rows import TABLES, Row

mpl.use("agg")
import matplotlib.pyplot as plt

PAGE = ROOT / "docs" / "results" / "speed.md"
PICTURE = ROOT / "docs" / "pictures" / "speed.png"
BASELINE = Path(__file__).parent / "baseline.json"
FALL = 0.15
"""By how much a ratio may fall below the baseline."""
UNITS = {"cpu": "CPU s", "growth": "GB", "tokens": "tokens/CPU s", "share": "GFLOP/CPU s"}
TEXT = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")


def _amount(row: Row, value: float) -> str:
    scaled = value / 1e9 if row.figure == "growth" else value
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _line(row: Row, result: Result | None) -> str:
    other = row.other or "GEMM"
    if result is None:
        reason = kept(row.sitting).get("skipped", {}).get(row.other or row.ours, "not measured")
        return f"| {row.work} | {row.ours} | {other} | | | {reason[:120]} | | | |"
    number = f"{result.ratio:.0%}" if row.figure == "share" else f"{result.ratio:.2f}x"
    ends = f"{min(result.ratios):.2f} to {max(result.ratios):.2f}"
    target = "" if row.target is None else f"{row.target:g}"
    met = "" if row.target is None else ("yes" if result.ratio >= row.target else "no")
    return (
        f"| {row.work} | {row.ours} | {other} | {_amount(row, result.other)} | "
        f"{_amount(row, result.ours)} {UNITS[row.figure]} | **{number}** | "
        f"{ends}, {len(result.ratios)} | {target} | {met} |"
    )


def tables(table: str) -> Iterator[str]:
    """Yield the lines of the tables that a command measures."""
    for title, rows in TABLES[table].items():
        yield f"\n### {title}\n"
        yield (
            "| work | side | compared with | there | here | better | range, rounds | target | met |"
        )
        yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        yield from (_line(row, result_of(row)) for row in rows)
    if table == "table":
        yield from _control()


def _control() -> Iterator[str]:
    """Yield the table of PPO on numeric environments, which `control.py` measures by itself."""
    yield "\n### Control, steps per CPU second\n"
    yield "| work | compared with | there | here | better | range | target | met |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in measured.control_rows():
        low, high = row["spread"]
        met = "yes" if row["ratio"] >= row["target"] else "no"
        yield (
            f"| {row['work']} | {row['peer']} | {row['theirs']:.0f} | {row['ours']:.0f} | "
            f"**{row['ratio']:.2f}x** | {low:.2f} to {high:.2f} | {row['target']:g} | {met} |"
        )


def _machine() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    flags = "AVX-512 BF16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no AVX-512 BF16"
    return (
        f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores, {flags}; one thread. "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )


def _state() -> str:
    return "\n".join(
        f"| {name} | {each['rounds']} | {each['minutes']:.1f} | {each['load']:.1f} | "
        f"{each['day']} | {each['code']} |"
        for name, each in measured.sittings().items()
    )


def write_page() -> None:
    """Write the page and its picture, and store what was measured."""
    measured.store()
    body = {name: "\n".join(tables(name)) for name in TABLES}
    text = TEXT
    for name, value in {
        **body, "machine": _machine(), "state": _state(), "commit": COMMIT,
    }.items():  # fmt: skip
        text = text.replace("{" + name + "}", value)
    PAGE.write_text(text, encoding="utf-8")
    _draw()


def _draw() -> None:
    """Draw how many times better each row is, and its target."""
    rows = [row for table in TABLES["table"].values() for row in table if row.figure != "share"]
    done = [(row, result) for row in rows if (result := result_of(row)) is not None]
    if not done:
        return
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(done) + 1.2))
    for place, (row, result) in enumerate(reversed(done)):
        color = "#9aa5b1" if row.target is None else "#2a78b8"
        axes.barh(place, result.ratio, color=color, height=0.7)
        axes.plot([min(result.ratios), max(result.ratios)], [place, place], color="black", lw=1)
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.4, place + 0.4], color="#c0392b", lw=2)
    labels = [f"{row.work}: {row.ours}, {row.other}" for row, _ in reversed(done)]
    axes.set_yticks(range(len(done)), labels, fontsize=6)
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xlabel("times better than the other (line: range of the rounds; red: target)")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _ratios(table: str) -> dict[str, float]:
    rows = [row for part in TABLES[table].values() for row in part]
    results = {row.key: fresh_result(row) for row in rows}
    ratios = {key: result.ratio for key, result in results.items() if result is not None}
    if table == "table":
        ratios |= {f"control / {row['peer']}": row["ratio"] for row in control.rows()}
    return ratios


def baseline() -> dict[str, float]:
    """Return the ratios that were stored."""
    return json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.is_file() else {}


def store_baseline() -> None:
    """Store the ratios that are kept now, over those of the same rows."""
    new: Mapping[str, float] = {
        key: round(ratio, 3) for table in TABLES for key, ratio in _ratios(table).items()
    }
    text = json.dumps({**baseline(), **new}, indent=1, sort_keys=True)
    BASELINE.write_text(text + "\n", encoding="utf-8")


def fallen(table: str) -> list[str]:
    """Return a line for each row of a table that is more than 15 % below the baseline."""
    stored, now = baseline(), _ratios(table)
    return [
        f"{key}: {now[key]:.2f}, and the baseline is {stored[key]:.2f}"
        for key in now
        if key in stored and now[key] < (1.0 - FALL) * stored[key]
    ]
