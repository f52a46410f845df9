"""The sum of one step of an analysis: the words of each site's vector, added word by word modulo 2**64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np

from fl_queue.analyses.base import MAX_SITES, STATE, WORDS, Analysis
from fl_queue.errors import AnalysisError, MessageError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.arrays import Int64s
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Bytes, Tensor


class StepSum:
    """
    The vectors of one step, added as they come, in any order.

    Args:
        analysis: The run's.
        state: Before the step.

    Raises:
        MessageError: No step follows the state.
    """

    def __init__(self, analysis: Analysis, state: Int64s) -> None:
        self.analysis, self.state = analysis, state
        self.words = analysis.layout(state)
        self.total = np.zeros(self.words.size, np.int64)
        self.count = self.total_weight = self.divisor = 0
        #: Of a sum of updates the sums of their scalars; a step has none.
        self.scalars: dict[str, Fraction] = {}

    @classmethod
    def of_body(cls, analysis: Analysis, body: Bytes) -> StepSum:
        """The sum of the step after the state in a version's body."""
        state = tensor_layout.views(analysis.manifest, body)[STATE]
        return cls(analysis, np.array(state, np.int64))

    @property
    def layout(self) -> Manifest:
        """The vector, as the only tensor of a body."""
        return self.words.manifest

    def check(self, header: Header) -> None:
        """
        Refuse a vector whose body, which need not be here yet, has another layout than the step's.

        Raises:
            MessageError: Names the difference.
        """
        codec.check_tensors("float32", header, self.layout)

    def add(self, header: Header, body: Bytes) -> None:
        """
        Add the vector of one site that ``check`` let pass.

        Raises:
            MessageError: It is damaged, a word is outside its limits, or there are too many; nothing was added.
        """
        message.check_body(header, body)
        words = tensor_layout.views(self.layout, body)[WORDS].astype(np.int64)
        self.words.check(words)
        if self.count == MAX_SITES:
            raise MessageError(f"more than {MAX_SITES} sites")
        self.add_sum({WORDS: words}, 1, 1)

    def next_state(self) -> Int64s:
        """The state after the step. Raises AnalysisError: there will be no result."""
        return self.analysis.advance(self.state, self.total)

    def version_of(self, state: Int64s) -> Tensor:
        """The body of the version with the state after the step."""
        return tensor_layout.little_endian(self.analysis.version(state, self.total))

    def is_last(self, state: Int64s, steps_left: int) -> bool:
        """
        Whether no step follows a state.

        Args:
            steps_left: Steps that the run may make after it.

        Raises:
            AnalysisError: There are none, and a fit has no result.
        """
        if not self.analysis.is_fit:
            return steps_left <= 0
        if self.analysis.is_done(state):
            return True
        if steps_left <= 0:
            raise AnalysisError(f"no result in {self.analysis.steps} steps")
        return False

    # A sum that another incarnation goes on from

    def pieces(self) -> Iterable[Bytes | Tensor]:
        """The body of the sum."""
        yield tensor_layout.little_endian(self.total)

    def add_sum(
        self, tensors: Mapping[str, Tensor], weight: int, count: int, divisor: int | None = None
    ) -> None:
        """Add the sum of several vectors."""
        self.total = self.total + tensors[WORDS]
        self.total_weight += weight
        self.divisor += weight if divisor is None else divisor
        self.count += count

    def add_scalars(self, sums: Mapping[str, Fraction]) -> None:
        """Add nothing: a vector comes without scalars."""
