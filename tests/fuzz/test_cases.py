"""Real inputs are accepted by the targets of ``make fuzz``, and what it found is a documented error now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

#: ``<target>.<what it is>``, the bytes as they were found.
CASES = sorted((Path(__file__).parent / "cases").glob("*"))


@pytest.mark.parametrize("name", TARGETS)
def test_real_inputs_are_accepted_and_damaged_ones_end_in_documented_errors(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert target(seeds[0])
    for seed in seeds:
        target(seed)
        step = max(1, len(seed) // 60)
        for position in range(0, len(seed), step):
            target(seed[:position])
            target(seed[:position] + bytes([seed[position] ^ 0x81]) + seed[position + 1 :])


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_what_was_found_is_a_documented_error(case: Path) -> None:
    TARGETS[case.name.partition(".")[0]](case.read_bytes())
