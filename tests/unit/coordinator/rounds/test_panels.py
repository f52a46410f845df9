"""The end of a step of a fit that a member of its panel does not answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.panels import PanelRound
from fl_queue.errors import MessageError
from fl_queue.protocol.panel import Loss, Panel
from fl_queue.protocol.records import Receipt, Verdict
from fl_queue.protocol.state import RoundState
from tests.unit.coordinator.rounds.test_closing_rule import ROUND

NOW = "2026-12-01T10:00:00Z"
PANEL = Panel(("a", "b", "c", "d"), 3)


def ending(
    on_loss: str, received: str, refused: str = "", elapsed_s: float = 1.0, panel: Panel = PANEL
) -> Ending | None:
    """The end of step 4. Args: ``received``, ``refused``: clients, a letter each; the others are pending."""
    current: RoundState = replace(ROUND, number=6, base_version=3, deadline_s=60.0)
    receipts = {client: Receipt(status=Verdict.received) for client in received}
    receipts |= {client: Receipt(status=Verdict.failed, reason="no") for client in refused}
    pending = [client for client in panel.clients if client not in receipts]
    return PanelRound(panel, current, on_loss).ending(receipts, pending, elapsed_s, NOW)


@pytest.mark.parametrize("on_loss", ["restart", "wait", "fail"])
def test_all_who_may_answer_are_waited_for(on_loss: str) -> None:
    """Until the deadline."""
    assert ending(on_loss, "abc") is None
    assert ending(on_loss, "", elapsed_s=59.9) is None


def test_a_fit_goes_on_without_a_silent_client() -> None:
    """With those who answered the step."""
    found = ending("restart", "abd", elapsed_s=60.2)
    assert found is not None
    assert found.reason == "step 4: c: silent at 60 s; the fit goes on with a, b, d"
    lost = (Loss("c", 4, 6, NOW, "silent at 60 s"),)
    assert found.panel == Panel(("a", "b", "d"), 3, lost)
    assert (found.outcome, found.fails) == ("abandoned", False)


def test_a_refusal_ends_a_step_once_the_others_have_answered() -> None:
    """All who answer it are the panel."""
    assert ending("restart", "ab", "c") is None
    found = ending("restart", "abd", "c")
    assert found is not None
    assert found.panel is not None
    assert found.panel.lost == (Loss("c", 4, 6, NOW, "no"),)


@pytest.mark.parametrize(
    ("received", "refused", "elapsed_s", "reason"),
    [
        ("ab", "", 60.0, "step 4: c: silent at 60 s; d: silent at 60 s; 2 of 4 left, quorum 3"),
        ("a", "bc", 1.0, "step 4: b: no; c: no; 2 of 4 left, quorum 3"),
    ],
)
def test_a_fit_fails_below_its_quorum(
    received: str, refused: str, elapsed_s: float, reason: str
) -> None:
    """At once where it is out of reach."""
    assert ending("restart", received, refused, elapsed_s) == Ending("abandoned", reason, True)


@pytest.mark.parametrize(("on_loss", "fails"), [("wait", False), ("fail", True)])
def test_a_loss_ends_a_step_at_once(on_loss: str, fails: bool) -> None:
    """Nothing is gained by the other answers."""
    found = ending(on_loss, "ab", "c")
    assert found is not None
    assert (found.fails, found.panel) == (fails, None)
    assert found.reason.startswith("step 4: c: no; ")
    assert f"task.on_loss = {on_loss}" in found.reason
    assert fails or "round.max_abandoned" in found.reason


def test_losses_add_up() -> None:
    """In their order; the quorum is that of the beginning."""
    first = ending("restart", "abc", "d")
    assert first is not None
    assert first.panel is not None
    assert ending("restart", "abc", panel=first.panel, elapsed_s=60.0) is None
    second = ending("restart", "ab", "c", panel=first.panel)
    assert second is not None
    assert second.reason == "step 4: c: no; 2 of 3 left, quorum 3"


def test_a_panel_is_text_in_redis() -> None:
    """It is read as it was written, and nothing else is."""
    found = PANEL.without([Loss("b", 4, 6, NOW, "no")])
    assert Panel.from_dict(json.loads(found.to_json())) == found
    plain = json.loads(found.to_json())
    for raw in ({}, plain | {"clients": ["../a"]}, plain | {"quorum": "3"}):
        with pytest.raises(MessageError):
            Panel.from_dict(raw)
