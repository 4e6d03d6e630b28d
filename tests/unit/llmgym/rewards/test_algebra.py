"""`math.verify`: which response is right for which gold answer, and which golds are refused."""

import threading

import gymnasium as gym
import pytest

from llmgym.errors import MissingExtraError, RewardError
from llmgym.messages import Score, Task
from llmgym.rewards.algebra import MathVerify
from llmgym.rewards.answers import check_answers
from llmgym.rewards.base import resolve, score_samples
from llmgym.rewards.boxed import boxed
from llmgym.rewards.compose import ByTask, Sum
from llmgym.rewards.rules import Choice, Contains, Numeric
from tests.unit.llmgym.samples import sample

# A gold answer, what a box of a response may hold, what must earn nothing.
ANSWERS = [
    (r"2\sqrt{3}", [r"2\sqrt{3}", r"\sqrt{12}", r"2\sqrt3"], ["2", "3", r"3\sqrt{2}"]),
    (r"3\pi", [r"3\pi", r"\pi \cdot 3", "3 pi"], ["3", r"\pi", "9.42"]),
    ("2x+3", ["2x+3", "3 + 2x"], ["2", "3", "2y+3", "2x-3"]),
    (r"\sqrt{2}", [r"\sqrt2", "sqrt(2)", "\u221a2"], ["2", r"\sqrt{3}", "1.4"]),
    ("x^2+1", ["1+x^2", "x^{2} + 1"], ["x^2", "x^2-1", "1"]),
    ("(x+1)^2", ["x^2+2x+1"], ["x^2+1"]),
    ("(1, 2)", ["(1,2)", r"\left(1, 2\right)"], ["(2,1)", "2,1", r"\{1,2\}", "[1,2]", "2"]),
    ("(3, 1)", ["(3,1)"], ["(5,2)", "(1,3)", r"\emptyset"]),
    ("(1,2,3)", ["(1, 2, 3)"], ["(1,3,2)", "1,2,3", "(1,2)"]),
    (r"\{1,2\}", [r"\{2,1\}", "1, 2", r"1 \text{ and } 2"], [r"\{1,3\}", "1,2,3", "12", "1"]),
    ("2, 3", ["3, 2", r"x=2 \text{ or } x=3"], ["(2,3)", "2", "23"]),
    ("[0,1)", ["[0, 1)"], ["(0,1)", "[0,1]", "0", "1"]),
    (r"(-\infty, 3]", [r"\left(-\infty,3\right]"], [r"(-\infty,3)", "3"]),
    (r"\text{Monday}", ["Monday", r"\text{monday}", r"\textbf{Monday}"], ["Sunday", "dynamo", ""]),
    ("Monday", [r"\text{Monday}", "Monday."], [r"\text{Tuesday}", "M", "Mon"]),
    ("all real numbers", [r"\text{All real numbers}"], ["real numbers", r"\mathbb{R}^2"]),
    ("yes", ["Yes", r"\text{yes}"], ["no", "y"]),
    ("no", ["No", r"\text{no}"], ["yes", "on"]),
    ("A", [r"\text{A}", "A", r"\textbf{(A)}"], ["B", r"\text{(B)}"]),
    ("xy", ["yx", "xy"], ["x", "xz"]),
    ("46", ["46", "46.0", "046", r"\text{46 apples}", "x = 46"], ["4", "6", "-46", "64"]),
    ("1,234", ["1234", r"1{,}234", "1,234"], ["234", "1", "1.234"]),
    ("1000000", ["10^6", "1 000 000", r"1\,000\,000", "1e6"], ["10^5", "0", "1"]),
    (r"\frac{1}{2}", ["0.5", "1/2", r"\dfrac{2}{4}", r"\frac12"], ["2", "0.05", "1"]),
    (r"1\frac{1}{2}", [r"\frac32", "1.5"], [r"\frac12", "11/2"]),
    (r"0.\overline{3}", [r"\frac13", r"0.\overline{3}"], ["0.3", "3"]),
    ("0.333", ["0.333"], [r"\frac13", "333"]),
    (r"50\%", [r"50\%", "0.5", "50 percent"], [r"5\%", "0.05"]),
    (r"90^\circ", ["90", r"90^{\circ}", "90\u00b0"], ["45", "9"]),
    (r"10\text{ cm}", ["10", r"10\text{ cm}"], ["1", "100"]),
    ("12 bananas", ["12", r"12\text{ bananas}"], ["13", "bananas"]),
    ("5 million", ["5 million"], ["5", "5 thousand"]),
    (r"\$18.90", ["18.9", r"\$18.90"], ["19", "1890"]),
    ("x=5", ["5", "x=5"], ["y=5", "x=6"]),
    ("y = 2x", ["2x", "y=2x"], ["y=3x", "2"]),
    ("x < 3", ["3 > x", "x<3"], ["x>3", "3"]),
    (r"12_3", ["12_{3}"], ["12_5", "21_3"]),
    ("3+4i", ["4i+3"], ["3-4i", "7"]),
    (r"\Delta", [r"\Delta"], [r"\delta"]),
    (r"\frac{\pi}{6}", [r"\pi/6"], [r"\pi/3", r"\frac{1}{6}"]),
    (
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"],
        ["1", "(2,1)"],
    ),
    (r"\pm 2", [r"\{-2, 2\}"], ["2", "-2"]),
    (46, ["46"], ["45"]),
    (0.00001, ["0.00001", r"10^{-5}"], ["0", "1", "5"]),
    (True, ["True"], ["False", "1"]),
    (r"so $x$ is \boxed{7}.", ["7"], ["x", "8"]),
    (r"$\frac{3}{4}$", ["0.75"], ["3", "4"]),
]
TABLE = [
    (gold, rf"So it is \boxed{{{inside}}}.", worth)
    for gold, right, wrong in ANSWERS
    for worth, all_of_them in ((1.0, right), (0.0, wrong))
    for inside in all_of_them
]
WHOLE = [
    ("7", r"\boxed{8} no, wait: \boxed{7}", 1.0),
    ("7", r"\boxed{7} or \boxed{8}", 0.0),
    ("8", r"\boxed{7} or \boxed{8", 0.0),
    ("7", r"\boxed{7} or \boxed{8", 0.0),
    ("7", r"\boxed {7}", 1.0),
    ("7", r"\fbox{7}", 1.0),
    ("3", "The answer is 3.", 1.0),
    ("3.14", "The answer is 3.14. I hope it is correct.", 1.0),
    (r"2\sqrt{3}", r"The answer is $2\sqrt{3}$.", 1.0),
    ("2", r"The answer is $2\sqrt{3}$.", 0.0),
    ("2", r"2\sqrt{3}", 0.0),
    ("3", "so we get 2x+3", 0.0),
    ("12", "It is 12 apples", 1.0),
    ("Monday", "Answer: Monday", 1.0),
    ("Monday", "Not Monday", 0.0),
    ("7", "", 0.0),
    ("7", "<think>(" * 12_500, 0.0),
]
NEITHER = [
    r"\dots",
    r"\frac{1}{",
    "",
    "9^{9^{9^{9}}}",
    "She sold 48/2 = 24 clips in May and 48+24 = 72 clips altogether",
    ["1", "2"],
    {"ground_truth": "1"},
    float("nan"),
]
pytestmark = pytest.mark.math


def worth(gold, response):
    (score,) = score_samples(MathVerify(), [sample(response, gold)])
    assert score.status == "ok", score.error
    return score.value


@pytest.mark.parametrize(("gold", "response", "right"), TABLE + WHOLE)
def test_a_right_answer_earns_one_and_another_nothing(gold, response, right):
    assert worth(gold, response) == right


@pytest.mark.parametrize("gold", NEITHER, ids=repr)
def test_a_gold_that_is_neither_words_nor_mathematics_is_refused_with_its_row(gold):
    with pytest.raises(RewardError, match=r"the row 'What\?' of here \(task t1\)"):
        score_samples(MathVerify(), [sample(r"\boxed{1}", gold)])


@pytest.mark.parametrize(
    "response",
    [
        "9^{9^{9^{9^{9}}}}",
        "(10^9)!",
        r"\binom{100000000}{50000000}",
        "(x+y)^{5000}",
        r"2^{-10^{10}}",
        r"\cos(10^{10^{6}})",
        r"((7^7)^7)^{7^6}",
        r"\prod_{n=1}^{1000000} n",
    ],
)
def test_what_is_too_large_to_compute_is_no_answer_and_takes_no_time(response):
    assert worth("1", rf"\boxed{{{response}}}") == 0.0
    assert worth("2^{2^5}", r"\boxed{4294967296}") == 1.0, "a small tower is computed"


def test_off_the_main_thread_it_scores_alike():
    found = []
    reward = resolve({"name": "math.verify", "kwargs": {"workers": 1}})

    def score():
        found.extend(score_samples(reward, [sample(r"\boxed{0.5}", "1/2"), sample("", "1/2")]))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    reward.close()
    assert found == [Score(1.0), Score(0.0)]


def rows(*golds, source="my.jsonl"):
    return [
        Task(id=f"t{i}", prompt=f"Question {i}?", answer=gold, source=source)
        for i, gold in enumerate(golds)
    ]


@pytest.mark.parametrize(
    ("reward", "golds", "says"),
    [
        ("math.verify", ["1", "Monday", r"\sqrt{2}", r"\dots"], r"'Question 3\?' of my.jsonl"),
        ("math.verify", ["1", None], "has no answer to compare"),
        ("math.boxed", ["1", ""], r"'Question 1\?' of my.jsonl .* is empty"),
        ("numeric", ["1", "two"], r"answer str 'two' of the row 'Question 1\?' .* is not a number"),
        ("choice", ["A", "Z"], r"'Question 1\?' .* none of the options"),
        ("contains", ["a", " "], r"'Question 1\?' .* has an empty text"),
        ("exact", ["a", None], r"'Question 1\?' .* has no answer"),
        (Sum(a=("numeric", 1.0), b=("contains", 1.0)), ["1", "x"], "is not a number"),
        (ByTask({"my.jsonl": "numeric"}), ["1", "x"], "is not a number"),
    ],
)
def test_a_gold_that_cannot_be_compared_is_found_before_a_response(reward, golds, says):
    reward = resolve(reward)
    check_answers(reward, rows(*golds[:-1]))
    with pytest.raises(RewardError, match=says):
        check_answers(reward, rows(*golds))


def test_a_task_of_another_source_is_not_the_business_of_its_reward():
    check_answers(ByTask({"other": Numeric(), "my.jsonl": Contains()}), rows("two"))
    check_answers(ByTask({"other": Choice()}), rows("two"))
    check_answers(None, rows(None))


def test_an_environment_says_so_at_the_latest_when_the_row_is_answered(tmp_path):
    file = tmp_path / "my.jsonl"
    file.write_text('{"prompt": "Q?", "answer": "\\\\dots"}\n', encoding="utf-8")
    kwargs = {"path": str(file), "split": "all", "answer_column": "answer"}
    env = gym.make("llmgym/Prompts-v0", reward="math.verify", **kwargs)
    env.reset(seed=0)
    with pytest.raises(RewardError, match="neither a word nor LaTeX"):
        env.step(r"\boxed{1}")


def test_of_several_boxes_the_last_counts_and_one_that_is_cut_is_none():
    assert boxed(r"\boxed{1} \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} \boxed{2") is None
    assert boxed("1") is None
    assert boxed(r"\fbox {3}") == "3"


def test_without_the_library_its_extra_is_named_at_the_start(monkeypatch):
    monkeypatch.setattr("llmgym.rewards.algebra._library", _missing)
    with pytest.raises(MissingExtraError, match="llmgym-rl"):
        check_answers(MathVerify(), rows("2x"))


def _missing():
    raise MissingExtraError('math.verify needs math-verify: pip install "llmgym-rl[math]"')
