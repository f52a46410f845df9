"""The JSON API against its own description: whatever that allows or forbids is answered as described."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fl_queue.config.schema import SECTIONS
from fl_queue.store import Store
from fl_queue.web.connection import Connection
from fl_queue.web.launch import Configs
from fl_queue.web.security import Access
from fl_queue.web.server import build
from tests.integration.conftest import run
from tests.support.recorded_rounds import abandoned, add_rounds, add_score, record

__all__ = ["run"]  # A fixture.

#: For each operation and each kind of input. More, to search: FLQ_TEST_FUZZ=500.
EXAMPLES = int(os.environ.get("FLQ_TEST_FUZZ", "10"))
bounded = settings(
    max_examples=EXAMPLES,
    database=None,
    derandomize=EXAMPLES < 100,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
#: A field of the config, and something that may be its value.
OVERRIDES = st.builds(
    "{0[0]}.{0[1]}={1}".format,
    st.sampled_from(
        [(section, key) for section, kind in SECTIONS.items() for key in kind.options()]
    ),
    st.one_of(
        st.text(max_size=20),
        st.integers().map(str),
        st.floats().map(str),
        st.lists(st.integers() | st.floats(), max_size=3).map(str),
    ),
)


def undescribed() -> list[Any]:
    """Checks that are left out: a config's name, or one of two options at a time, may be refused."""
    # Not at the top: that takes a second, in each process of the suite.
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    return [positive_data_acceptance]


@pytest.fixture
def api(run: str, store: Store, redis_urls: tuple[str, str], tmp_path: Path) -> Any:
    """The described API of a server with a run in it, and without workers."""
    add_rounds(store, run, record(1, 0), abandoned(2, 1), record(3, 1))
    add_score(store, run, 1, 0.7)
    connection = Connection(lambda: Store.open(*redis_urls, tmp_path), tmp_path)
    app = build(connection, Configs(None), Access("", frozenset({"testserver"})))
    import schemathesis

    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)


def inputs(operation: Any) -> list[SearchStrategy[Any]]:
    """Valid ones, and invalid ones where anything is invalid: a path takes every text."""
    from schemathesis.generation import GenerationMode

    modes = [GenerationMode.POSITIVE]
    if list(operation.query) or list(operation.body) or "{number}" in operation.path:
        modes.append(GenerationMode.NEGATIVE)
    return [operation.as_strategy(generation_mode=mode) for mode in modes]


def test_every_answer_is_as_described(api: Any) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    for operation in operations:
        for strategy in inputs(operation):

            @given(strategy, st.booleans())
            @bounded
            def check(case: Any, is_there: bool) -> None:
                if is_there and "run" in case.path_parameters:
                    case.path_parameters["run"] = "lawful"
                case.call_and_validate(excluded_checks=undescribed())

            check()

    assert len(operations) == 14


def test_no_value_of_any_field_is_a_crash(api: Any) -> None:
    operation = api["/api/v1/runs"]["POST"]

    @given(st.lists(OVERRIDES, min_size=1, max_size=2), st.integers(0, 10**6))
    @bounded
    def check(overrides: list[str], number: int) -> None:
        body = {"config": "mnist-3v7", "run": f"fuzzed-{number}", "set": overrides}
        operation.Case(body=body, media_type="application/json").call_and_validate(
            excluded_checks=undescribed()
        )

    check()
