"""From a model and a budget to a smaller model: stage after stage, each with a file of its result.

    start -> latency -> texts -> table -> search ... -> finalists -> model -> measure -> report

With a recovery it is finalists -> rerank -> sliced -> recovery -> model.

A second call reads what is there and continues. What can be refused is refused before weights load.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from llmgym.compression.problem import read_problem, write_problem
from llmgym.compression.table import PlanTable
from trainers.compress.costs import CostModel
from trainers.compress.database import Database
from trainers.compress.evaluation_log import EvaluationLog
from trainers.compress.latency_files import latency_from_json, latency_to_json
from trainers.compress.problem import cost_table, table_of
from trainers.compress.row_files import check_enough, read_splits, write_splits
from trainers.config import Config
from trainers.config.compression import CompressionSettings
from trainers.config.files import read
from trainers.distributed.collectives import World, name_accelerator
from trainers.export.int8 import export_int8
from trainers.models.hf_logging import quietly
from trainers.models.loading import load_causal_lm
from trainers.redaction.text_files import private
from trainers.run_dir.folder import RunFolder, open_run
from trainers.run_dir.trust import note
from trainers.runner.compression import finishing, measuring, recovering, reporting, texts
from trainers.runner.compression.checking import CheckedModel, check_budget
from trainers.runner.compression.searching import SearchTask, StoppedError, searched
from trainers.runner.compression.stage_files import StageFiles
from trainers.runner.compression.summary import summary_of, write_summary
from trainers.runner.compression.writer import text_writer

Results = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionResult:
    """What a compression leaves behind.

    Attributes:
        run_dir: the run folder; `model/` in it is the smaller model.
        summary: the contents of compression.json; empty where the search was asked to stop.
    """

    run_dir: Path
    summary: dict[str, Any]


@private()
@quietly()
def compress(
    config: Config,
    settings: CompressionSettings,
    *,
    has_env: bool = True,
    clean: bool = False,
    say: Callable[[str], None] | None = None,
) -> CompressionResult:
    """Make a model smaller, and write it as a plain folder; a second call continues.

    Args:
        config: `model.path` is the dense model; its environment, rewards and generation tell which
            texts quality is measured on, and which tasks it is scored on.
        settings: budget, searchers and where the result is.
        has_env: whether the environment is one that the model was trained for.
        clean: move what is there to NAME.old-1.
        say: told what happens, line by line.

    Raises:
        ConfigError: a setting is wrong, the family cannot be sliced, there is too little text, or
            the folder has results of other settings.
        TaskSourceError: no plan meets the budget; tells the least that one can.
        MeasurementError: the times of this machine cannot be trusted.
        CheckpointError: a result is damaged, or the exported model computes something else.
    """
    name_accelerator()
    checked = CheckedModel(config, settings, has_env=has_env)
    checked.check()
    path = Path(settings.dir) / settings.name
    begun = (path / "stages").is_dir() and not clean
    folder = open_run(
        checked.config,
        resume=path if begun else False,
        clean=clean and path.exists(),
        command=sys.argv,
        world=World(),
    )
    note(folder.path, read([folder.path / "config.yaml"]))
    try:
        return Compression(checked, folder, say or (lambda _: None)).run()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        folder.set_status("interrupted" if stopped else "failed", stage="compress", reason=reason)
        raise
    finally:
        folder.close()


@final
class Compression:
    """The stages of one compression.

    Args:
        checked: model and settings.
        folder: of the run.
        say: told what happens.
    """

    def __init__(
        self, checked: CheckedModel, folder: RunFolder, say: Callable[[str], None]
    ) -> None:
        self._checked, self._folder = checked, folder
        self._settings, self._path = checked.settings, folder.path
        self._stages = StageFiles(folder.path)
        self._told = say

    def _say(self, text: str) -> None:
        _log.info("%s", text)
        self._told(text)

    def run(self) -> CompressionResult:
        """Run every stage that has no result yet."""
        self._folder.set_status("running", stage="compress")
        identity = self._checked.identity()
        self._stages.run("start", identity, dict)
        results: Results = {"latency": self._stages.run("latency", {}, self._latency)}
        if results["latency"]:
            self._say(f"latency: {measuring.fit_words(results['latency'])}")
        self._check_latency(results)
        results["texts"] = self._stages.run("texts", {}, self._texts)
        self._say(f"texts: {texts.texts_words(results['texts'])}")
        results["table"] = self._stages.run("table", {}, lambda: self._table(results))
        self._say(f"table: {results['table']['evaluations']} evaluations of sensitivities")
        try:
            results["search"] = self._search(results)
            for name, compute in self._last_stages():
                results[name] = self._stages.run(name, {}, lambda compute=compute: compute(results))
        except StoppedError:
            self._folder.set_status("interrupted", stage="compress")
            return CompressionResult(run_dir=self._path, summary={})
        summary = summary_of(self._checked, results)
        write_summary(self._path, summary)
        self._folder.set_status("finished", stage="compress")
        return CompressionResult(run_dir=self._path, summary=summary)

    def _last_stages(self) -> list[tuple[str, Callable[[Results], Results]]]:
        """Return the stages after the search; without a recovery the sliced model is the model."""
        ends = [("int8", self._int8), ("measure", self._measure), ("report", self._report)]
        if not self._recovers:
            return [("finalists", self._finalists), ("model", self._model), *ends]
        recovery = [("rerank", self._rerank), ("sliced", self._model), ("recovery", self._recovery)]
        return [("finalists", self._finalists), *recovery, ("model", self._recovered), *ends]

    @property
    def _recovers(self) -> bool:
        return self._settings.recover != "none"

    @cached_property
    def _database(self) -> Database:
        """The dense model with the texts of the run; made when the first stage needs it."""
        splits = read_splits(self._path / "texts.safetensors")
        check_enough(splits, self._widest)
        log = EvaluationLog(self._path / "evaluations.jsonl")
        return Database(self._dense, splits, log=log)

    @cached_property
    def _dense(self) -> Any:  # noqa: ANN401 - a model of transformers
        self._say(f"loading {self._checked.source}")
        return load_causal_lm(self._checked.source).eval().requires_grad_(False)

    @property
    def _widest(self) -> int:
        geometry = self._checked.geometry
        return max(geometry.num_heads * geometry.head_dim, geometry.intermediate_size)

    def _costs(self, results: Mapping[str, Any]) -> CostModel:
        latency = results["latency"]
        return CostModel(
            self._checked.geometry, latency=latency_from_json(latency) if latency else None
        )

    def _latency(self) -> Results:
        """Measure the table; without a budget of latency there is none."""
        if "latency" not in self._settings.shares:
            return {}
        self._say("latency: measuring units and complete models")
        table = measuring.checked_latency(self._checked.model_config, self._settings, self._say)
        return latency_to_json(table)

    def _check_latency(self, results: Results) -> None:
        table = cost_table(self._checked.space, self._costs(results), self._checked.source)
        check_budget(table, self._settings.shares)

    def _texts(self) -> Results:
        """Collect the three splits, and write them."""
        checked = self._checked
        if self._settings.data is not None:
            pieces = texts.splits_of_files(self._settings, checked.chat)
        else:
            self._say(f"texts: the dense model writes to tasks of {checked.config.env.id}")
            counts = texts.token_counts(self._settings)
            counts["calibration"] = max(
                counts["calibration"], texts.least_calibration(self._widest)
            )
            writer = text_writer(checked.config, checked.chat, self._dense)
            pieces = texts.splits_of_tasks(writer, counts)
        splits = texts.matrices(pieces, checked.chat)
        check_enough(splits, self._widest)
        write_splits(self._path / "texts.safetensors", splits)
        return texts.split_sizes(splits)

    def _table(self, results: Results) -> Results:
        """Measure sensitivities, and write the problem that `llmgym/Compression-v0` reads."""
        database = self._database
        costs = self._costs(results)
        table = table_of(database, self._checked.space, costs, self._settings.name)
        paid = self._checked.num_sensitivities
        write_problem(self._path / ".problem.npz", table)
        (self._path / ".problem.npz").replace(self._path / "problem.npz")
        return {"evaluations": paid, "influences": database.block_influences()}

    @cached_property
    def _problem(self) -> PlanTable:
        return read_problem(self._path / "problem.npz")

    def _task(self, results: Results) -> SearchTask:
        return SearchTask(
            database=self._database,
            space=self._checked.space,
            table=self._problem,
            shares=self._settings.shares,
            paid=results["table"]["evaluations"],
            limit=self._settings.evaluations,
            seed=self._settings.seed,
            influences=results["table"]["influences"],
        )

    def _search(self, results: Results) -> dict[str, Results]:
        """Run every searcher, each a stage of its own."""
        outcomes: dict[str, Results] = {}
        for name in self._settings.searchers:
            outcomes[name] = self._stages.run(
                f"search-{name}",
                {},
                lambda name=name: searched(name, self._task(results), self._path, self._say),
            )
            kl = outcomes[name]["kl"]
            quality = "no plan" if kl is None else f"KL {kl:.4f}"
            self._say(
                f"{name}: {quality} on selection, {outcomes[name]['evaluations']} evaluations"
            )
        return outcomes

    def _finalists(self, results: Results) -> Results:
        """Score the best plans of all searchers again, on all selection tokens."""
        task = self._task(results)
        limits = finishing.PlanLimits(self._costs(results), task.budget)
        always = [
            self._checked.space.plan(outcome["plan"])
            for outcome in results["search"].values()
            if outcome["plan"] is not None
        ]
        rows = finishing.finalists(
            self._database,
            limits,
            always,
            count=self._settings.finalists,
            tokens=self._settings.selection_tokens,
        )
        return {"rows": rows}

    def _model(self, results: Results) -> Results:
        """Write the best plan as a plain folder, tested in a fresh process."""
        ranked = results["rerank" if self._recovers else "finalists"]["rows"]
        plan = finishing.plan_from_json(ranked[0]["plan"])
        database, source = self._database, self._checked.source
        self._say(f"model: {finishing.kept_words(plan, database.dense)}")
        own = self._checked.config.tokenizer.path is None
        tokenizer = finishing.tokenizer_folder(
            source, self._checked.chat, self._path / "tokenizer", is_own=own
        )
        rows = read_splits(self._path / "texts.safetensors").selection
        folder = self._path / ("sliced" if self._recovers else "model")
        kept = finishing.kept_words(plan, database.dense)
        card = finishing.model_card(source, self._settings, kept)
        sizes = finishing.exported(folder, database, plan, rows, card, tokenizer=tokenizer)
        costs = self._costs(results)
        shares = costs.plan(plan) / costs.plan(database.dense).clip(1e-30)
        modelled = dict(zip(costs.names, map(float, shares), strict=True))
        return {"plan": finishing.plan_to_json(plan), "modelled": modelled, **sizes}

    def _rerank(self, results: Results) -> Results:
        """Choose among the finalists after a short recovery of each."""
        splits = read_splits(self._path / "texts.safetensors")
        rows = results["finalists"]["rows"]
        return {
            "rows": recovering.reranked(self._database, splits, rows, self._settings, self._say)
        }

    def _recovery(self, results: Results) -> Results:
        """Distill the dense model into the sliced one, in a run of its own."""
        del results
        self._say(f"recovery: {self._settings.recover} on {self._checked.config.env.id}")
        return recovering.recovered(self._checked, self._path / "sliced", self._path / "recovery")

    def _recovered(self, results: Results) -> Results:
        """Write the recovered model as a plain folder, tested in a fresh process."""
        plan = finishing.plan_from_json(results["sliced"]["plan"])
        kept = finishing.kept_words(plan, self._database.dense)
        rows = read_splits(self._path / "texts.safetensors").selection
        size = finishing.exported_again(
            self._path / "model",
            Path(results["recovery"]["folder"]),
            rows,
            finishing.model_card(self._checked.source, self._settings, kept),
            tokenizer=self._path / "sliced",
        )
        return {**results["sliced"], "bytes": size}

    def _int8(self, results: Results) -> Results:
        """Write the model in int8, where it is wanted."""
        del results
        if not self._settings.int8:
            return {}
        return asdict(export_int8(self._path / "model", self._path / "model-int8"))

    def _measure(self, results: Results) -> Results:
        """Time the exported model against the dense one."""
        del results
        smaller = finishing.load_smaller(self._path / "model")
        ratio = measuring.measured_ratio(smaller, self._dense, self._settings)
        return asdict(ratio)

    def _report(self, results: Results) -> Results:
        """Read the report split, once, and score both models on held-out tasks."""
        plans = reporting.plans_of(self._checked.space, results)
        report = reporting.qualities(self._database, plans)
        if self._recovers:
            report["kl"] |= reporting.recovered_kl(self._dense, self._path, report["kl"]["model"])
        scores: Results = {}
        if self._checked.scores_tasks:
            self._say(f"report: {self._settings.score_tasks} held-out tasks")
            scores = reporting.scores(self._checked, self._dense, self._path / "model")
        front = finishing.front(self._task(results), self._costs(results))
        return {**report, "scores": scores, "front": front}
