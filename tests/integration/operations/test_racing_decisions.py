"""Cancel, resume and start against each other, with lost replies, by hand on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunStateError
from fl_queue.protocol.events import RunCompleted
from fl_queue.reporting import event_lines, progress
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import runs as transactions
from fl_queue.web import view_model
from tests.support.manual_run import NAME, ManualRun
from tests.support.proxy import Loss, Proxy

#: Event of a run's stream -> the state it leads to.
STATES = {
    "run_created": "training",
    "run_cancelled": "cancelled",
    "round_cancelled": "cancelled",
    "run_resumed": "training",
    "run_continued": "training",
}
TRIES = 30


def state_changes(store: Store, run: str) -> list[str]:
    """The events of a run that changed its state, oldest first."""
    events = store.control.events.read({keyspace.events(run): "0-0"}, None)
    return [event["event"] for _, _, event in events if event["event"] in STATES]


def end_round(hand: ManualRun) -> None:
    """As while a run waits for clients: it trains, and no round is open."""
    hand.store.control.redis.hset(keyspace.round_(hand.run, hand.state.round), "state", "abandoned")


@pytest.mark.parametrize("loss", ["reset", "timeout"])
def test_a_command_whose_reply_is_lost_knows_that_it_was_done(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path, loss: Loss
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    with (
        Proxy(redis_urls[0]) as proxy,
        Store(f"{proxy.url}?socket_timeout=1", redis_urls[1]) as lossy,
    ):

        def lost(marker: bytes, command: Callable[[], object]) -> None:
            proxy.lose_replies(marker, loss)
            command()
            assert proxy.lost == 1
            proxy.lose_replies(b"", loss)

        lost(b"round_cancelled", lambda: controls.cancel(lossy, NAME))
        assert hand.state.state == "cancelled"
        lost(b"run_resumed", lambda: controls.resume(lossy, NAME, tmp_path))
        assert hand.state.state == "training"
        end_round(hand)
        lost(b"run_cancelled", lambda: controls.cancel(lossy, NAME))
        assert hand.state.state == "cancelled"
        lost(b"run_continued", lambda: runs.start_run(lossy, NAME, hand.config, 2))
        assert hand.state.state == "training"
    assert state_changes(store, hand.run) == [
        "run_created", "round_cancelled", "run_resumed", "run_cancelled", "run_continued",
    ]  # fmt: skip


def test_a_run_that_goes_on_with_other_settings_names_them(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    controls.cancel(store, NAME)
    settings = ("round.cohort=2", "train.epochs=7", "train.learning_rate=0.5")
    runs.start_run(store, NAME, loading.load("mnist-3v7", settings, {}), 2)
    controls.cancel(store, NAME)
    progress.follow(store, hand.run, Console(width=200), since="0-0")
    wanted = "2 more rounds wanted; with other settings: train.epochs, train.learning_rate"
    assert wanted in capsys.readouterr().out


def test_who_is_overtaken_after_a_lost_reply_does_not_decide_twice(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    end_round(hand)
    resumed = threading.Event()
    with Proxy(redis_urls[0]) as proxy, Store(proxy.url, redis_urls[1]) as lossy:
        transact = lossy.control.transact

        def overtaken(*args: object) -> bool:
            done = transact(*args)  # type: ignore[arg-type]
            if not resumed.is_set():
                controls.resume(store, NAME, tmp_path)
                resumed.set()
            return done

        lossy.control.transact = overtaken  # type: ignore[method-assign]
        proxy.lose_replies(b"run_cancelled", "reset")
        state = controls.cancel(lossy, NAME)
    assert resumed.is_set()
    assert state.state == "training"  # The last decision holds, and its answer is true.
    assert state_changes(store, hand.run)[-2:] == ["run_cancelled", "run_resumed"]


@pytest.mark.parametrize("loses", [False, True])
def test_the_last_of_cancel_resume_and_start_wins_and_each_answer_is_true(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path, loses: bool
) -> None:
    """Args: ``loses``: whether the reply to every change of the run's state is lost at first."""
    hand = ManualRun(store, tmp_path, "ab", 10)
    before = len(state_changes(store, hand.run))
    answers: list[str] = []

    def cancel(own: Store) -> str:
        return f"cancelled: {controls.cancel(own, NAME).state}"

    def resume(own: Store) -> str:
        _, done = controls.resume(own, NAME, tmp_path)
        return "resumed" if any("goes on from" in line for line in done) else "trains"

    def start(own: Store) -> str:
        return f"started: {runs.start_run(own, NAME, hand.config, 2).state}"

    def run(command: Callable[[Store], str], gate: threading.Barrier) -> None:
        with Store(proxy.url, redis_urls[1]) as own:
            gate.wait(60)
            try:
                answers.append(command(own))
            except RunStateError as exc:
                answers.append(str(exc))

    with Proxy(redis_urls[0]) as proxy:
        proxy.lose_replies(b"run_" if loses else b"", "reset")
        for _ in range(TRIES):
            gate = threading.Barrier(3)
            threads = [
                threading.Thread(target=run, args=(one, gate)) for one in (cancel, resume, start)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            assert STATES[state_changes(store, hand.run)[-1]] == hand.state.state
    assert len(answers) == 3 * TRIES
    counted = state_changes(store, hand.run)[before:]
    ends = sum("cancelled" in event for event in counted)
    assert sum(answer.startswith("cancelled: ") for answer in answers) == ends
    assert answers.count("resumed") == counted.count("run_resumed")
    assert sum(answer.startswith("started: ") for answer in answers) == counted.count(
        "run_continued"
    )
    assert not [answer for answer in answers if "None" in answer]
    refused = [answer for answer in answers if answer.startswith("run ")]
    assert all("is training: " in text or "is cancelled already" in text for text in refused)


def test_a_run_that_is_continued_elsewhere_meanwhile_keeps_all_its_segments(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    controls.cancel(store, NAME)

    def other(epochs: int) -> RunConfig:
        return loading.load("mnist-3v7", ("round.cohort=2", f"train.epochs={epochs}"), {})

    with Store(*redis_urls) as slow:
        transact = slow.control.transact

        def late(*args: object) -> bool:
            slow.control.transact = transact  # type: ignore[method-assign]
            runs.start_run(store, NAME, other(7), 1)
            controls.cancel(store, NAME)
            return transact(*args)  # type: ignore[arg-type]

        slow.control.transact = late  # type: ignore[method-assign]
        runs.start_run(slow, NAME, other(9), 1)
    found = [
        part["config"]["train"]["epochs"] for part in store.control.runs.config_segments(hand.run)
    ]
    assert found == [hand.config.train.epochs, 7, 9]
    assert hand.state.segment == 2


def test_a_caller_that_slept_does_not_overwrite_the_population(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    seen = hand.state
    store.control.redis.hset(keyspace.run(hand.run), "population", '["a", "b", "c"]')
    assert not runs.set_state(store, seen, "completed", "", RunCompleted)
    assert hand.state.active


def test_a_run_without_a_version_is_never_at_version_none(store: Store, tmp_path: Path) -> None:
    loaded = loading.load("mnist-3v7", (), {})
    run = runs.start_run(store, NAME, loaded, 1).run_id
    texts = [runs.describe_state(store, controls.cancel(store, NAME))]
    cancelled = runs.find_run(store, run)
    texts.append(view_model.headline(store, cancelled, None, ""))
    with pytest.raises(Exception, match="cancelled by an operator") as failed:
        runs.raise_unless_completed(cancelled)
    texts.append(str(failed.value))
    texts += controls.resume(store, NAME, tmp_path)[1]
    events = store.control.events.read({keyspace.events(run): "0-0"}, None)
    texts += [event_lines.describe(event) for _, _, event in events]
    completed: RunState = replace(cancelled, state="completed")
    texts.append(runs.describe_state(store, completed))
    assert "before its version 0" in texts[0]
    assert not [text for text in texts if "None" in text or "version none" in text]


def test_no_evaluation_of_a_run_that_has_been_deleted_is_published(store: Store) -> None:
    def published(run: str) -> bool:
        return transactions.publish_evaluation(
            store,
            JobTicket("evaluator", rq_types.EVALUATE, keyspace.EVALUATE_QUEUE, run, 0, 60),
        )

    store.control.redis.hset(keyspace.versions("there-000000"), "0", "{}")

    assert published("there-000000")
    assert not published("there-000000")
    assert not published("deleted-000000")
    assert store.control.redis.keys("*deleted-000000*") == []
