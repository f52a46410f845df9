"""
The power of two by which a round's clients divide what they send, of a strategy whose numbers grow and shrink.

q-FedAvg sends ``F^q (y - x)``: at a small loss that is less than the last bit of the exact sum, at a large one
more than its limit. A factor that all clients of a round share cancels in its step. It follows from the last
round that was committed, and is recorded with the round, so that every try of a job has the same.
"""

from __future__ import annotations

from fl_queue.aggregation.exact_sum import OUTSIDE
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from fl_queue.store import RunState, Store
from fl_queue.strategies import get_strategy

#: A round whose updates were beyond the limit is followed by one with so much more room.
_MORE = 16
#: Records that are looked at: a run has failed long before as many rounds are abandoned.
_RECORDS = 32


def of_next_round(store: Store, state: RunState, config: RunConfig) -> int:
    """The exponent of the round that is opened next; 0 of strategies that have none."""
    if not get_strategy(config.aggregation.strategy, config.strategy).has_exponent:
        return 0
    more = 0
    for record in reversed(store.control.history.records(state.run_id, last=_RECORDS)):
        if record.purpose != Purpose.train or record.strategy != config.aggregation.strategy:
            continue
        if record.outcome == Outcome.committed:
            return record.next_exponent + more
        if _had_no_room(record):
            more += _MORE
    return more


def _had_no_room(record: RoundRecord) -> bool:
    return any(OUTSIDE in reason for reason in record.rejected.values())
