"""A reward model's run: rows, classifier, the stage, and what it is worth on rows it never saw."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmgym.plural import counted
from trainers.backends.gathering import gathered_module
from trainers.backends.torch import OptimizerSettings
from trainers.backends.zero.setup import loading, save_json
from trainers.config import Config
from trainers.distributed.collectives import from_main
from trainers.errors import ConfigError
from trainers.export.folders import export_classifier
from trainers.models.adapters import adapt, check_lora
from trainers.models.classifier import (
    SequenceClassifier,
    classifier_context,
    classifier_tokenizer,
    load_classifier,
)
from trainers.models.loading import count_parameters, enable_checkpointing
from trainers.runner.assemble import Devices
from trainers.runner.digests import labeled_digest, weights_digest
from trainers.runner.session import Session
from trainers.runner.stages.steps import take_steps
from trainers.supervised.fit import num_steps
from trainers.supervised.preference_data import (
    Classes,
    LabeledExample,
    RewardModelExample,
    file_of_test,
    labeled_examples,
    preferences,
    split_subjects,
    tokenize_labeled,
)
from trainers.supervised.reward_model import ClassifierMetrics, RewardModelLoss, class_weights
from trainers.supervised.sft_data import read_format

RULE = "A row belongs to a class if all its labels do; every other row is left out."
HELD_OUT_SOURCES = {"holdout": "rows kept back", "test": "rows of the test file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a run learns from and is judged by, as read.

    Attributes:
        classes: None of preferences.
        summary: where they come from, for the card.
        note: the same in a line, for the header.
    """

    train: list[LabeledExample]
    test: list[LabeledExample]
    classes: Classes | None
    summary: str
    note: str

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names; none of preferences."""
        return () if self.classes is None else self.classes.names


def train_reward_model(session: Session) -> dict[str, float]:
    """Run the stage and write `model/`.

    Returns:
        The figures of the last step and of the rows it never saw, by name.
    """
    config = session.config
    check_lora(config)
    rows = _rows(config)
    texts = (
        text
        for example in rows.train
        for text in (*(str(message["content"]) for message in example.messages), *example.responses)
    )
    tokenizer = classifier_tokenizer(config, texts, has_prompts=config.data.has_prompts)
    learned, parts = _examples(session, rows, tokenizer)
    session.identify(rows=labeled_digest(learned))
    with loading(config):
        model, has_head = load_classifier(config, tokenizer, rows.names)
    if config.backend.gradient_checkpointing:
        enable_checkpointing(model.model)
    origin = config.model.path or f"{config.model.preset}, built in place"
    head = "its own head" if has_head else "a new head"
    session.note("model", f"{origin}, {count_parameters(model) / 1e6:.1f} M, {head}")
    weights = _class_weights(config, rows, learned)
    devices = Devices.of(config, session.world, model)
    if config.model.lora.rank:
        session.identify(base=weights_digest(model))  # in no checkpoint
        adapt(model.model, config.model.lora, seed=config.run.seed)
    if devices.zero is not None and session.world.is_main:
        settings_json = {"reward_model": devices.zero.trained(_optimizer(config))}
        save_json(session.folder.path / "deepspeed.json", settings_json)
    engine = devices.engine(model, _optimizer(config), "reward model")
    loss = RewardModelLoss(
        config=config,
        world=session.world,
        device=engine.device,
        pad_token_id=_pad_token_id(tokenizer),
        class_weights=weights,
    )
    total, size = num_steps(len(learned), loss.settings), loss.settings.batch_size
    session.note("steps", f"{total} of {size} rows")
    metrics = take_steps(session, engine, learned, loss, held_out=parts["holdout"])
    if metrics is None:
        engine.close()
        return {}
    verdicts = {name: loss.judge(engine, part, learned) for name, part in parts.items() if part}
    for name, verdict in verdicts.items():
        result = f"accuracy {verdict.accuracy:.3f}, without reading {verdict.baseline:.3f}"
        session.note(name, f"{result}, calibration error {verdict.calibration_error:.3f}")
    if "test" in verdicts:
        result = verdicts["test"].metrics("test")
        session.log(result, total, "reward_model", total)
        metrics |= result
    card, folder = _card(session, rows, verdicts), session.folder.path / "model"
    trained = gathered_module(engine)
    assert isinstance(trained, SequenceClassifier)
    from_main(lambda: export_classifier(folder, trained, tokenizer, card))
    engine.close()
    return metrics


def _rows(config: Config) -> Rows:
    """Read the rows that are learned, and those of the test file."""
    if config.data.path is None:
        raise ConfigError("a reward model learns from rows. Give a file or hub id: --data FILE")
    path, test, limit = config.data.path, file_of_test(config), config.data.num_examples
    if config.reward_model.label_column is None:
        rows = preferences(config, path, limit=limit)
        tested = preferences(config, test) if test else []
        pairs = counted(len(rows), "pair")
        summary = f"{pairs} of {path}."
        return Rows(train=rows, test=tested, classes=None, summary=summary, note=pairs)
    rows, classes, num_left = labeled_examples(config, path, limit=limit)
    tested, _, num_tested_left = labeled_examples(config, test, classes) if test else ([], None, 0)
    counts = Counter(row.label for row in rows)
    each = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(classes.names))
    summary = f"{counted(len(rows), 'row')} of {path}: {each}. {RULE} So were {num_left} of these"
    summary += f", and {num_tested_left} of the test file." if test else "."
    note = f"{each}; {num_left} left out: in several classes or none"
    return Rows(train=rows, test=tested, classes=classes, summary=summary, note=note)


def _examples(
    session: Session, rows: Rows, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[RewardModelExample], dict[str, list[RewardModelExample]]]:
    """Return what is learned, and what is judged by the name of its part."""
    config = session.config
    stage, longest = config.reward_model, classifier_context(config, tokenizer)
    read = partial(
        tokenize_labeled,
        tokenizer,
        longest=longest,
        too_long=config.data.too_long,
        day=config.run.day,
    )
    examples, dropped = read(rows.train)
    learned, held_out = split_subjects(examples, stage.holdout, config.run.seed)
    tested, made = [], []
    if rows.test:
        made, more = read(rows.test)
        dropped += more
        seen = {example.subject for example in examples}
        tested = [example for example in made if example.subject not in seen]
    session.note("data", rows.note)
    session.note("format", read_format(config.data, str(config.data.path)).told)
    session.note("rows", f"{len(learned)} learned, {len(held_out)} kept back, {dropped} too long")
    if rows.test:
        seen_too = len(made) - len(tested)
        session.note(
            "test", f"{counted(len(tested), 'row')}; {seen_too} left out, seen in training"
        )
    return learned, {"holdout": held_out, "test": tested}


def _pad_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def _class_weights(
    config: Config, rows: Rows, learned: Sequence[RewardModelExample]
) -> tuple[float, ...]:
    missing = set(range(len(rows.names))) - {example.label for example in learned}
    if missing:
        raise ConfigError(
            f'the class "{rows.names[min(missing)]}" has no row left to learn from. Give more rows '
            "of it, or lower --reward-model.holdout."
        )
    kind = config.reward_model.class_weights
    return class_weights(learned, len(rows.names), kind) if rows.names else ()


def _optimizer(config: Config) -> OptimizerSettings:
    stage = config.reward_model
    return OptimizerSettings(
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
    )


def _card(
    session: Session, rows: Rows, verdicts: Mapping[str, ClassifierMetrics]
) -> dict[str, Any]:
    """Return what the model card says: what was learned, and what it is worth."""
    config = session.config
    classes = {number: name for number, name in enumerate(rows.names)}
    judged = f"classes {classes}" if classes else "one score, higher is better"
    reads = (
        "a dialogue and its response, in the chat template of this tokenizer if it has one"
        if config.data.has_prompts
        else "a text alone; of a dialogue, its texts with a space between"
    )
    paragraphs = [f"Judges {reads}. Logits: {judged}.", f"Data: {rows.summary}"]
    metrics = {}
    rule = "always the most frequent class" if classes else "always the longer, or the shorter,"
    for name, measured in verdicts.items():
        metrics |= measured.metrics(name)
        paragraphs.append(
            f"On {measured.num_rows} {HELD_OUT_SOURCES[name]}: accuracy {measured.accuracy:.3f}, "
            f"where {rule} reaches {measured.baseline:.3f}; expected calibration error "
            f"{measured.calibration_error:.3f}."
        )
        table = ["| mean confidence | rows | accuracy |", "| --- | --- | --- |"]
        table += [
            f"| {sure:.3f} | {number} | {right:.3f} |" for number, sure, right in measured.bins
        ]
        paragraphs.append("\n".join(table))
    paragraphs.append(
        "Figures by their names in metrics.jsonl are below. "
        f"Settings: config.yaml of the run, digest {config.digest}."
    )
    return {
        "title": config.run.name,
        "stage": "reward-model",
        "base_model": config.model.path,
        "metrics": metrics,
        "text": "\n\n".join(paragraphs),
    }
