"""Reads the data sets of reasoning-gym: ids such as `reasoning_gym/chain_sum`.

A response is the answer and nothing else; a wrapper such as `ExtractAnswer` takes it out of a
longer one. A response earns the data set's own score, shifted so that an empty one earns 0.0 and
the data set's answer 1.0.

Train and test are two ranges of indices of one data set, and the hash of a question decides which
of the two it may be in, since many sets ask the same question at several indices. Another `seed`
is another order of the same indices: data sets of neighboring seeds share all but one question.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np

from llmgym.adapters.libraries import library_of, printed_to_log
from llmgym.adapters.random_state import OwnRandom
from llmgym.data.rows import task_id
from llmgym.data.splits import Split, check_split
from llmgym.env import SingleTurnEnv
from llmgym.errors import TaskSourceError
from llmgym.messages import Sample, Task
from llmgym.rewards.base import UnitReward

INDICES = 20_000
"""Indices of a data set that are used; some build all of them at once."""
TEST_INDICES = 4_000
"""The first of them, of which the held-out tasks are drawn."""
STRIDE = 7919
"""Steps from an index whose question is of the other split to the next one that is tried."""
MAX_TRIES = 64
_SETS = """
    ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf
    binary_alternation binary_matrix bitwise_arithmetic boxnet caesar_cipher calendar_arithmetic
    chain_sum circuit_logic codeio coin_flip color_cube_rotation complex_arithmetic composite
    count_bits count_primes countdown course_schedule cryptarithm decimal_arithmetic
    decimal_chain_sum dice emoji_mystery family_relationships figlet_font
    fraction_simplification futoshiki game_of_life game_of_life_halting gcd graph_color
    group_anagrams gsm_symbolic intermediate_integration isomorphic_strings jugs kakurasu
    knight_swap knights_knaves largest_island lcm leg_counting letter_counting letter_jumble
    list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid n_queens
    needle_haystack number_filtering number_format number_sequence number_sorting
    palindrome_generation palindrome_partitioning path_star polynomial_equations
    polynomial_multiplication pool_matrix power_function prime_factorization products
    propositional_logic puzzle24 quantum_lock ransom_note rearc rectangle_count rotate_matrix
    rotten_oranges rubiks_cube rush_hour self_reference sentence_reordering shortest_path
    simple_equations simple_geometry simple_integration sokoban spell_backward spiral_matrix
    string_insertion string_manipulation string_splitting string_synthesis sudoku survo
    syllogism time_intervals tower_of_hanoi tsumego word_ladder word_sequence_reversal
    word_sorting zebra_puzzles
"""
NO_GOLD = "the library knows no answer to its questions, so nothing shows that its score is right"
HASH_DEPENDENT = (
    "codeio",
    "intermediate_integration",
    "isomorphic_strings",
    "list_functions",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
"""Data sets with other questions or answers under another hash seed of Python."""
PAYS_JUNK = "it pays more for some texts that mean nothing than for an empty one"
BLOCKED = {
    "boxnet": NO_GOLD,
    "composite": "it mixes other data sets; mix their ids instead",
    "game_of_life_halting": "its score is 1.0 for every text",
    "graph_color": NO_GOLD,
    "knight_swap": "the same index gives another question in the same process",
    "prime_factorization": "its score raises on text that is no product of numbers",
    "propositional_logic": NO_GOLD,
    "rubiks_cube": NO_GOLD,
    "sokoban": "a question takes up to 20 seconds",
    "zebra_puzzles": "a question takes a second and more",
    "tsumego": PAYS_JUNK,
    "spell_backward": PAYS_JUNK,
    "palindrome_generation": PAYS_JUNK,
    "figlet_font": PAYS_JUNK,
    "rush_hour": NO_GOLD,
}
"""Data sets that are not read, with the reason, as found in version 0.1.25."""


NAMES = tuple(name for name in _SETS.split() if name not in BLOCKED)
"""Data sets that are read."""


@lru_cache(maxsize=32)
def dataset_of(name: str) -> Any:  # noqa: ANN401 - the library's class
    """Return a data set of the library with its own settings, the same one at every call.

    Raises:
        MissingExtraError: the library is not installed.
        TaskSourceError: the data set depends on the hash seed of Python, which is not fixed.
    """
    if name in HASH_DEPENDENT and not os.environ.get("PYTHONHASHSEED", "").isdigit():
        raise TaskSourceError(
            f"reasoning_gym/{name} asks other questions in every process, unless the hash seed of "
            "Python is fixed: put PYTHONHASHSEED=0 in front of the command"
        )
    return library_of("reasoning_gym").create_dataset(name, seed=0, size=INDICES)


@final
@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one data set that belong to a split, as a task source."""

    name: str
    split: Split
    seed: int
    size: int

    def __len__(self) -> int:
        """Return how many there are."""
        return self.size

    def __getitem__(self, index: int) -> Task:
        """Return the first question of this split, from an index that the seed decides."""
        if not 0 <= index < self.size:
            raise IndexError(f"task {index} is not in [0, {self.size})")
        start = TEST_INDICES if self.split == "train" else 0
        count = {"train": INDICES - TEST_INDICES, "test": TEST_INDICES, "all": INDICES}[self.split]
        factor, shift = order_of(self.seed)
        place, dataset = (index * factor + shift) % count, dataset_of(self.name)
        for attempt in range(MAX_TRIES):
            number = start + (place + attempt * STRIDE) % count
            with OwnRandom(number), printed_to_log():  # some draw from the global generators
                entry = dataset[number]
            if self.split in ("all", half_of(entry["question"])):
                return self._task(entry)
        raise TaskSourceError(
            f"reasoning_gym/{self.name} has too few questions: none of {MAX_TRIES} is of the split "
            f"{self.split}"
        )

    def _task(self, entry: dict[str, Any]) -> Task:
        return Task(
            id=task_id(entry["question"]),
            prompt=entry["question"],
            answer=entry["answer"],
            solution=entry["answer"],
            source=f"reasoning_gym/{self.name}",
            meta={"entry": entry},
        )


def half_of(question: str) -> Split:
    """Return the split that a question may be in: half of all may be held out."""
    return "test" if int(task_id(question), 16) % 2 else "train"


def order_of(seed: int) -> tuple[int, int]:
    """Return factor and shift that reorder indices; the factor has no divisor of their number."""
    if seed == 0:
        return 1, 0
    rng = np.random.default_rng(seed)
    return 10 * int(rng.integers(INDICES)) + 1, int(rng.integers(INDICES))


@final
@dataclass(frozen=True, slots=True)
class Scored(UnitReward):
    """The data set's own score, shifted so that what an empty response earns is 0.0."""

    dataset: str
    name: str = "scored"
    per_turn: bool = False
    collective: bool = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Ask the data set about each response."""
        return [self._score(str(sample.text), sample.task) for sample in samples]

    def _score(self, text: str, task: Task) -> float:
        entry, dataset = task.meta["entry"], dataset_of(self.dataset)
        text = text.strip() if task.answer == str(task.answer).strip() else text
        with OwnRandom(0), printed_to_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty text, say, that is no matrix
            floor = float(dataset.score_answer("", entry))
            value = float(dataset.score_answer(text, entry))
        return max(0.0, (value - floor) / (1.0 - floor))


def make(
    name: str,
    *,
    split: Split = "train",
    seed: int = 0,
    size: int | None = None,
    **kwargs: Any,
) -> SingleTurnEnv:
    """Build the environment of a data set.

    Args:
        name: of the data set.
        split: "train", "test" for the held-out questions, or "all".
        seed: another seed is another order of questions.
        size: the number of questions; None for 1000 held-out ones, or 16,000 to train on.
        **kwargs: for `SingleTurnEnv`; a `reward` replaces the data set's score.

    Raises:
        MissingExtraError: the library is not installed.
        TaskSourceError: the questions depend on the hash seed of Python, which is not fixed.
    """
    check_split(split)
    dataset_of(name)
    if size is None:
        size = 1000 if split == "test" else INDICES - TEST_INDICES
    tasks = Questions(name, split, seed, size)
    return SingleTurnEnv(tasks, kwargs.pop("reward", None) or Scored(name), **kwargs)
