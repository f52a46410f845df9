"""The section ``secure``: what goes with secure rounds, and the line about what does not."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError

ON = {"enabled": True, "confirm": False}


def of(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.from_dict({"secure": ON, **sections})


@pytest.mark.parametrize(
    ("field", "words", "sections"),
    [
        ("secure.confirm", "require_enrolment = true", {"secure": {"enabled": True}}),
        ("secure.min_cohort", "3", {"secure": {**ON, "min_cohort": 2}}),
        ("secure.bits", "16, 20, 24, 32, 64", {"secure": {**ON, "bits": 8}}),
        ("secure.bits", "fractional bits", {"secure": {**ON, "bits": 32}}),
        ("round.cohort", "secure.min_cohort = 3", {"round": {"cohort": 2, "quorum": 2}}),
        ("round.quorum", "raise it to 6", {"round": {"cohort": 10, "quorum": 5}}),
        ("round.mode", "set it to sync", {"round": {"mode": "async"}}),
        ("aggregation.strategy", "krum needs every update in clear", {"aggregation": {"strategy": "krum", "weighting": "uniform"}}),
        ("aggregation.strategy", "fednova sends a number", {"aggregation": {"strategy": "fednova"}}),
        ("update.codec", "secure.bits = 16 is the codec", {"update": {"codec": "int8"}}),
        ("update.codec", "secure.bits = 16 is the codec", {"update": {"codec": "topk"}}),
        ("secure.enabled", "simulation", {"clients": {"kind": "simulation", "count": 4}}),
        (
            "secure.bits",
            "scaffold needs updates as they were made",
            {
                "aggregation": {"strategy": "scaffold", "weighting": "uniform"},
                "secure": {**ON, "bits": 32},
            },
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_with_secure_rounds_is_refused(
    field: str, words: str, sections: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        of(**sections)

    assert caught.value.field == field
    assert words in caught.value.reason


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"aggregation": {"strategy": "fedadam"}},
        {"aggregation": {"strategy": "scaffold", "weighting": "uniform"}},
        {"secure": {**ON, "bits": 32}, "aggregation": {"weighting": "uniform"}},
        {"secure": {**ON, "bits": 16}, "aggregation": {"weighting": "uniform", "limit": 1.0}},
        {"secure": {"enabled": True}, "security": {"require_enrolment": True}},
        {"round": {"cohort": 10, "quorum": 6}},
        {"model": {"private": ["head.*"]}},
    ],
)
def test_what_goes_with_them_is_accepted(sections: dict[str, dict[str, Any]]) -> None:
    assert of(**sections).ring_bits in (16, 32, 64)


def test_a_config_without_them_has_the_digest_that_it_had() -> None:
    assert "secure" not in RunConfig.from_dict({}).record()
    assert RunConfig.from_dict({}).ring_bits == 64
    assert RunConfig.from_dict({"secure": {"bits": 32}}).ring_bits == 64
    assert of().record()["secure"] == ON
