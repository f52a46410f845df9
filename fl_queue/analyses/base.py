"""
Interface of an analysis: what each site adds up in a step, and what the aggregator makes of the sum.

A step is a round of purpose ``sums``: every site sends one vector of int64 words, laid out by the state before it, and
the state after it is a function of the vectors' sum. A word is a sum over rows, so the bits of every state are the
same for any split of the rows over sites, but for what the sites withhold. numpy only; both sides import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl_queue.analyses.differencing import Grouping
from fl_queue.analyses.exact_digits import carry
from fl_queue.analyses.filters import Condition
from fl_queue.analyses.time_grids import Curve
from fl_queue.errors import MessageError, PolicyRefusal
from fl_queue.protocol.arrays import Float64s, Int64s
from fl_queue.protocol.manifest import Manifest, TensorSpec

#: Name of a version's tensor with the state's words.
STATE = "state"
#: Name of a fit's other tensor: the sum that its state was made of, and words of 0 after it.
TOTAL = "total"
#: Name of the only tensor of a site's answer.
WORDS = "words"
#: Sites of a round.
MAX_SITES = 1024
#: No count of a site is larger: all counts of all sites of a column's cells together stay below 2**63.
MAX_COUNT = 1 << 40
#: Largest number to whose multiples a site may round its counts.
MAX_ROUNDING = 1000


@dataclass(frozen=True)
class Columns:
    """
    The columns that an analysis reads.

    Args:
        numbers: Names of columns of numbers.
        categories: Name of a column of texts -> its levels, as the config lists them.
        dates: Those of ``numbers`` that hold dates, read as days since 1970-01-01.
        texts: Names of columns whose different texts are counted.
        filters: Names of columns that conditions are about.
    """

    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    dates: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted({*self.numbers, *self.categories, *self.texts, *self.filters}))


@dataclass(frozen=True)
class SiteRows:
    """
    A site's rows, as far as an analysis reads them.

    Args:
        rows: Their number.
        numbers: Column -> (rows,) finite values; NaN: missing.
        codes: Column -> (rows,) number of the level; after the levels of the config that of any other text, then that
            of a missing cell.
        scratch: What an analysis has computed from the rows and keeps for its next step; lost at any time, and
            then computed again with the same bits.
        texts: Column -> text -> its rows; missing cells are none.
    """

    rows: int
    numbers: Mapping[str, Float64s]
    codes: Mapping[str, Int64s]
    scratch: dict[str, Any] = field(default_factory=dict, compare=False)
    texts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """
    What a site shows of its rows.

    Args:
        min_rows: Fewest rows of a table that anything is made of.
        min_cell: Fewest rows behind any number.
        dominance: A sum of numbers that are not negative is withheld where all rows but the two largest have less than
            this many per cent of the largest; 0: it is not.
        max_names: Most names of levels of one category that are shown; 0: none.
        round_to: Counts are rounded to multiples of this; 0: they are not.
    """

    min_rows: int = 0
    min_cell: int = 0
    dominance: float = 0.0
    max_names: int = 1000
    round_to: int = 0

    def rounded(self, counts: Int64s) -> Int64s:
        """Counts as they are shown: the nearest multiple of ``round_to``, halves up."""
        if not self.round_to:
            return counts
        return (2 * counts + self.round_to) // (2 * self.round_to) * self.round_to

    def check_rows(
        self, rows: int, problem: str = "the table has fewer rows than its min_rows"
    ) -> None:
        """Raise PolicyRefusal unless a table has rows enough. Their number is shown, so it is no small count either."""
        if rows < max(self.min_rows, self.min_cell):
            raise PolicyRefusal(problem)

    def check_weights(self, total: float, squares: float) -> None:
        """
        Raise PolicyRefusal unless weights count as rows enough: their sum squared, by that of their squares.

        A fit's state may give all rows but a few so little weight that its sums are those of the few.

        Args:
            total: Sum of the rows' weights, none of them negative.
            squares: Sum of their squares.
        """
        if total * total < self.min_cell * squares:
            raise PolicyRefusal("a step gives weight to too few rows (min_cell)")


@dataclass(frozen=True)
class Block:
    """
    Consecutive words of one meaning.

    Args:
        name: Unique in its layout.
        shape: Of the words as an array.
        low, high: No word of a site is outside.
        is_digits: Whether the last dimension has the words of one exact sum.
    """

    name: str
    shape: tuple[int, ...]
    low: int
    high: int
    is_digits: bool = False

    @property
    def size(self) -> int:
        """Number of words."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_count(self) -> bool:
        """Whether each word is a count."""
        return not self.is_digits and self.high == MAX_COUNT


class Layout:
    """
    Order of the words of one vector.

    Args:
        blocks: One after the other, without gaps.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = tuple(blocks)
        self._starts: dict[str, int] = {}
        self.size = 0
        for block in self.blocks:
            self._starts[block.name] = self.size
            self.size += block.size

    @property
    def numbers(self) -> int:
        """How many numbers the words show: an exact sum is one."""
        return sum(
            block.size // block.shape[-1] if block.is_digits and block.size else block.size
            for block in self.blocks
        )

    @property
    def manifest(self) -> Manifest:
        """The vector as the only tensor of a body."""
        return Manifest((TensorSpec(WORDS, (self.size,), "integer_buffer"),))

    def packed(self, values: Mapping[str, Int64s]) -> Int64s:
        """The vector of all blocks' words. Args: ``values``: of each block, of its shape."""
        found = np.zeros(self.size, np.int64)
        for block in self.blocks:
            start = self._starts[block.name]
            found[start : start + block.size] = values[block.name].reshape(block.size)
        return found

    def view(self, words: Int64s, name: str) -> Int64s:
        """The words of a block, in its shape."""
        block = next(block for block in self.blocks if block.name == name)
        start = self._starts[name]
        return words[start : start + block.size].reshape(block.shape)

    def carried(self, total: Int64s) -> Int64s:
        """A sum of vectors with exact sums in their one form, whatever the vectors were."""
        found = total.copy()
        for block in self.blocks:
            if block.is_digits:
                carry(self.view(found, block.name))
        return found

    def check(self, words: Int64s) -> None:
        """Raise MessageError unless a site's vector has this size, and each word is within its limits."""
        if words.shape != (self.size,):
            raise MessageError(f"{words.size} words, not {self.size}")
        for block in self.blocks:
            start = self._starts[block.name]
            part = words[start : start + block.size]
            if block.size and (part.min() < block.low or part.max() > block.high):
                raise MessageError(f"a word of {block.name} is outside its limits")


def counts(name: str, *shape: int) -> Block:
    """A block of counts."""
    return Block(name, shape, 0, MAX_COUNT)


def flags(name: str, *shape: int) -> Block:
    """A block of words that are 1 where a site has withheld something."""
    return Block(name, shape, 0, 1)


def digits(name: str, *shape: int) -> Block:
    """A block of words of exact sums."""
    return Block(name, shape, -(1 << 31), 1 << 31, is_digits=True)


class Analysis(ABC):
    """
    An analysis of a run.

    Args:
        options: The config's ``[task]``, complete.
    """

    #: Whether it is a fit, whose steps depend on each other: it ends with the first state that has a result.
    is_fit = False
    #: Whether a site limits the numbers that a fit shows by those of its table (max_numbers of its policy).
    has_budget = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """The columns that it reads."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Rounds until there is a result; of a fit the largest number of them."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Words of a state; the same for each step."""

    @property
    def total_size(self) -> int:
        """Words of the longest vector of a fit: a state comes with the sum it was made of, for sites to check."""
        raise NotImplementedError(f"{type(self).__name__} is a fit, and has no total_size")

    @property
    def parameters(self) -> int:
        """Parameters of a fit, which a site limits by its rows (max_parameters of its policy); 0: it does not."""
        return 0

    @abstractmethod
    def questions(self) -> Sequence[str]:
        """What is asked of a site, a line each, as its ledger notes it."""

    def groupings(self) -> Sequence[Grouping]:
        """The ways in which rows are grouped, for comparisons with those of other questions."""
        return ()

    def row_sets(self, table: SiteRows) -> Sequence[Int64s]:
        """Places in a table of rows that sums are of, where those are a part that the config chooses, after ``local``."""
        return ()

    @property
    def where(self) -> tuple[Condition, ...]:
        """Conditions that its rows meet; none: all rows."""
        return ()

    def curves(self) -> Sequence[Curve]:
        """The counts of times to an event, for comparisons with those of other questions."""
        return ()

    @abstractmethod
    def layout(self, state: Int64s) -> Layout:
        """
        The words of the next vector.

        Raises:
            MessageError: The state is none of this analysis, or its last.
        """

    @abstractmethod
    def local(self, state: Int64s, table: SiteRows, limits: Limits) -> Int64s:
        """
        A site's vector.

        Raises:
            PolicyRefusal: The table has too few rows.
            DataError: A number cannot be summed; names the column.
        """

    @abstractmethod
    def advance(self, state: Int64s, total: Int64s) -> Int64s:
        """
        The state after a step: a function of state and sum alone, which each site of a fit computes again.

        A site of a fit may be lost between two steps. The sum is of fewer sites then than the state, and what was
        made of their rows counts no more: the fit begins anew, or a part of it.

        Args:
            total: Sum of the sites' vectors, modulo 2**64.

        Raises:
            AnalysisError: There will be no result; the run ends with the sentence.
        """

    @abstractmethod
    def result(self, state: Int64s) -> dict[str, Any] | None:
        """
        The result as plain values; None: a further step is needed.

        Raises:
            AnalysisError: There is none.
        """

    def site_result(self, state: Int64s, answers: Sequence[Int64s]) -> dict[str, Any]:
        """
        The result of one site's answers alone, of an analysis that can be asked for it (``task.per_site``).

        Args:
            state: The last one, of all sites.
            answers: Its vectors of the steps, from the first one; of later ones some may not be there.
        """
        raise NotImplementedError(f"{type(self).__name__} has no result of one site")

    def is_done(self, state: Int64s) -> bool:
        """Whether a state has a result. Raises AnalysisError: there will be none."""
        return self.result(state) is not None

    def model(self, state: Int64s) -> dict[str, Any] | None:
        """The model of a state with a result, as the JSON that another program reads; None: there is none."""
        return None

    def initial(self) -> Int64s:
        """The state before the first step: words of 0."""
        return np.zeros(self.state_size, np.int64)

    @property
    def manifest(self) -> Manifest:
        """A version: the state, and of a fit the sum that it was made of."""
        tensors = [TensorSpec(STATE, (self.state_size,), "integer_buffer")]
        if self.is_fit:
            tensors.append(TensorSpec(TOTAL, (self.total_size,), "integer_buffer"))
        return Manifest(tuple(tensors))

    def version(self, state: Int64s, total: Int64s | None = None) -> Int64s:
        """The words of a version. Args: ``total``: the sum that the state was made of; None: it is the first."""
        if not self.is_fit:
            return state
        padded = np.zeros(self.total_size, np.int64)
        if total is not None:
            padded[: total.size] = total
        return np.concatenate([state, padded])

    def unpadded(self, before: Int64s, padded: Int64s) -> Int64s:
        """
        The sum in a version of a fit.

        Args:
            before: The state before it.

        Raises:
            MessageError: It is no sum of a step after that state.
        """
        size = self.layout(before).size
        if padded[size:].any():
            raise MessageError(f"a sum of more than {size} words")
        return padded[:size]

    def state_of(self, words: Int64s) -> Int64s:
        """Raise MessageError unless these are as many words as a state has; returns them."""
        if words.shape != (self.state_size,):
            raise MessageError(f"a state of {words.size} words, not {self.state_size}")
        return words
