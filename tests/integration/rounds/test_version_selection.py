"""Which version is the best, by what, and metrics that no client reports. Redis, no workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_queue import metrics
from fl_queue.cli import cli
from fl_queue.config import loading, metric_choice
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, RunStateError
from fl_queue.models import selection
from fl_queue.reporting import comparison, diagnosis
from fl_queue.store import RunState, Store, keyspace
from tests.support.manual_run import ManualRun
from tests.support.recorded_rounds import add_rounds, add_score, record, sums


def begun(store: Store, *overrides: str, name: str = "judged") -> RunState:
    return runs.start_run(store, name, loading.load("mnist-3v7", overrides, {}), 3)


def best(store: Store, state: RunState) -> int | None:
    return selection.best_version(store, state.run_id, runs.current_config(store, state.run_id))


def test_validation_chooses_the_best_version_and_the_test_set_reports_it(store: Store) -> None:
    state = begun(store)
    add_rounds(
        store,
        state.run_id,
        record(1, 0, validation=sums(5, 5)),
        record(2, 1, validation=sums(9, 1)),
        record(3, 2, validation=sums(8, 2)),
    )
    for version, accuracy in enumerate((0.5, 0.7, 0.95)):
        add_score(store, state.run_id, version, accuracy)

    (row,) = comparison.compare(store, [state], "accuracy")

    assert best(store, state) == 1
    assert (row.best_version, row.best, row.value) == (1, 0.7, 0.95)


def test_without_validation_the_test_set_chooses(store: Store) -> None:
    state = begun(store)
    add_rounds(store, state.run_id, record(1, 0, validation={}), record(2, 1, validation={}))
    for version, accuracy in enumerate((0.5, 0.95, 0.7)):
        add_score(store, state.run_id, version, accuracy)
    assert best(store, state) == 1


def test_a_regression_has_a_best_version(store: Store) -> None:
    state = begun(store)
    losses = [{"num_examples": 4, "loss_sum": value} for value in (8.0, 2.0, 4.0)]
    add_rounds(
        store, state.run_id, *(record(n + 1, n, validation=one) for n, one in enumerate(losses))
    )
    assert best(store, state) == 1


def test_a_missing_version_is_reported_with_those_that_exist(store: Store) -> None:
    state = begun(store, "run.select=auc:max")
    add_rounds(store, state.run_id, record(1, 0))
    with pytest.raises(RunStateError, match="auc:max; there is accuracy, f1, loss;"):
        selection.chosen_version(store, state, runs.current_config(store, state.run_id), None, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run.select", "acuracy:max"),
        ("run.select", "personal_accuracy:max"),
        ("run.stop_when", "mae<=0.1"),
    ],
)
def test_a_metric_that_a_task_never_reports_is_refused_with_the_list(
    store: Store, field: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        begun(store, f"{field}={value}")
    assert caught.value.field == field
    assert "choose one of accuracy, auc, f1, loss" in str(caught.value)
    assert store.control.runs.names() == {}


MISTAKES = [
    ("run.select", "acuracy:max", "did you mean accuracy"),
    ("run.select", "loss:max", "write loss:min"),
    ("run.select", "f1:min", "write f1:max"),
    ("run.stop_when", "acuracy >= 0.9", "did you mean accuracy"),
    ("run.stop_when", "accuracy >= 97", "97 % is written 0.97"),
    ("run.stop_when", "auc < -1", "between 0 and 1"),
]


@pytest.mark.parametrize(("field", "value", "words"), MISTAKES)
def test_a_metric_that_cannot_be_meant_is_refused_before_the_run(
    store: Store, field: str, value: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        begun(store, f"{field}={value}")
    assert caught.value.field == field


@pytest.mark.parametrize("command", [("config", "show"), ("try-task",)])
@pytest.mark.parametrize(("field", "value", "words"), MISTAKES[:2])
def test_commands_that_look_at_a_config_refuse_it_as_well(
    command: tuple[str, ...], field: str, value: str, words: str
) -> None:
    done = CliRunner().invoke(cli, [*command, "mnist-3v7", "--set", f"{field}={value}"])
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


def test_bounds_of_an_own_tasks_metrics_are_its_own() -> None:
    own = ("run.task=mine:Mine", "run.stop_when=accuracy >= 97")
    metric_choice.check_config(loading.load("mnist-3v7", own, {}))
    for condition in ("loss <= 97", "accuracy >= 1", "loss >= 1e3"):
        metric_choice.check_config(loading.load("mnist-3v7", (f"run.stop_when={condition}",), {}))


def test_what_an_own_task_does_not_report_is_refused_when_the_run_goes_on(store: Store) -> None:
    loss = {"num_examples": 4, "loss_sum": 2.0, "mae_sum": 1.0}
    state = begun(store)
    add_rounds(store, state.run_id, record(1, 0, validation=metrics.merge_clients({"a": loss})))
    store.control.redis.hset(f"flq:{{{state.run_id}}}", "state", "completed")
    with pytest.raises(ConfigError, match="choose one of loss, mae"):
        begun(store, "run.select=accuracy:max")
    assert begun(store, "run.select=loss:min").active


def test_a_run_ends_after_one_round_when_no_client_reports_its_metric(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 3, "run.select=accuracy:max")
    for client in hand.clients:
        hand.update(client)
    hand.work()
    assert (hand.state.state, hand.state.version) == ("failed", 1)
    assert "run.select: accuracy is not what" in hand.state.reason
    assert "choose one of loss" in hand.state.reason


def test_what_of_one_class_has_no_auc_yet_may_have_one() -> None:
    one_class = {
        "num_examples": 2,
        "confusion": [[2, 0], [0, 0]],
        "logit_histograms": [[2] + [0] * 999, [0] * 1000],
    }
    found = metric_choice.of_history(
        [record(1, 0, validation=metrics.merge_clients({"a": one_class}))]
    )
    assert found == {"accuracy", "f1", "auc"}


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (("run.task=mnist-2nn",), "accuracy f1 loss"),
        (("run.task=csv", "task.classes=a,b,c"), "accuracy f1 loss"),
        (("run.task=csv",), "accuracy auc f1 loss"),
        (("run.task=image-folder",), "accuracy auc f1 loss"),
        (
            ("run.task=csv", "train.finetune_epochs=1"),
            "accuracy auc f1 loss finetuned_accuracy finetuned_f1 finetuned_loss",
        ),
        (
            ("run.task=csv", 'model.private=["head.*"]'),
            "accuracy auc f1 loss personal_accuracy personal_f1 personal_loss",
        ),
        (("run.task=csv", f"task.classes={','.join(map(str, range(61)))}"), "accuracy loss"),
    ],
)
def test_what_built_in_tasks_report_is_known(overrides: Any, reported: str) -> None:
    loaded = loading.load(None, ("data.partition=site", *overrides), {})
    assert metric_choice.of_config(loaded) == set(reported.split())


def test_capped_weights_are_an_event(store: Store, tmp_path: Path) -> None:
    # Clients report the number of their letter: 97 and 98 examples.
    bounds = ("aggregation.weighting=examples", "aggregation.max_examples=97")
    hand = ManualRun(store, tmp_path, "ab", 3, *bounds)
    for client in hand.clients:
        hand.update(client)
    hand.work()
    assert hand.record.capped == ["b"]
    assert hand.record.weights == {"a": 97, "b": 97}
    found = store.control.events.read({keyspace.events(hand.run): "0-0"}, None)
    capped = [event for _, _, event in found if event["event"] == "weights_capped"]
    assert [event["round"] for event in capped] == [1]
    assert capped[0]["reason"].startswith(
        "b reported more examples than count: aggregation.max_examples = 97"
    )
    assert diagnosis.notices(store, hand.state) == ["round 1: b reported more examples than count"]
