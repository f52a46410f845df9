"""What a round has when it is opened as a secure one: its graph, and the run keys of its cohort."""

from __future__ import annotations

from collections.abc import Sequence

from fl_queue.config.run_config import RunConfig
from fl_queue.config.secure_section import check_quorum
from fl_queue.coordinator.rounds import preflight
from fl_queue.errors import ConfigError
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.secure_state import RoundParty, SecureState, Stage
from fl_queue.secure import graph
from fl_queue.store import RunState, Store


def fields(
    store: Store,
    state: RunState,
    config: RunConfig,
    purpose: Purpose,
    cohort: Sequence[str],
    quorum: int,
) -> dict[str, str]:
    """
    Fields of the round's hash; none where updates come in clear.

    Args:
        cohort: Sorted; each of them has sent its run key.
        quorum: Of the round.

    Raises:
        ConfigError: A round of so many clients could not be unmasked, or one of them may not weigh what it has.
    """
    if not config.secure.enabled or purpose != Purpose.train:
        return {}
    section, size = config.secure, len(cohort)
    check_quorum(section, size, quorum)
    shape = graph.shape(size, section.max_corrupt, section.max_dropout)
    opened = SecureState(
        stage=Stage.keys,
        bits=section.bits,
        degree=shape.degree,
        threshold=shape.threshold,
        min_cohort=section.min_cohort,
        parties=_parties(store, state, config, cohort),
    )
    return opened.fields()


def _parties(
    store: Store, state: RunState, config: RunConfig, cohort: Sequence[str]
) -> dict[str, RoundParty]:
    keys, found = preflight.run_keys(store, state), dict[str, RoundParty]()
    for client in cohort:
        enrolment = store.control.enrolments.get(client)
        if enrolment is not None and enrolment.max_examples:
            _check_weighting(config, client)
        key = keys[client]
        signer = enrolment.key if enrolment is not None else ""
        found[client] = RoundParty(key=key.key.hex(), signature=key.signature.hex(), signer=signer)
    return found


def _check_weighting(config: RunConfig, client: str) -> None:
    if config.aggregation.weighting == "examples":
        raise ConfigError(
            "aggregation.weighting",
            f"examples cannot be limited under masks, and {client} is enrolled with --max-examples; set it to "
            "capped or uniform, or enrol the client without",
        )
