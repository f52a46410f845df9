"""Which runs a sweep consists of, and which names it may not take."""

from __future__ import annotations

import pytest

from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.experiments import sweeps
from fl_queue.store import Store


def named(*arguments: str, seeds: int = 1, overrides: tuple[str, ...] = ()) -> list[str]:
    return [made.name for made in sweeps.members("demo", "d", seeds, arguments, overrides)]


def test_seeds_go_on_from_that_of_the_config() -> None:
    made = sweeps.members("demo", "d", 3, (), ("run.seed=7",))

    assert [member.name for member in made] == ["d-s7", "d-s8", "d-s9"]
    assert [member.config.run.seed for member in made] == [7, 8, 9]
    assert made[0].settings == ("run.seed=7",)


def test_each_value_is_combined_with_each_other_one() -> None:
    made = sweeps.members(
        "demo", "d", 2, ("train.learning_rate=0.1,0.25", "aggregation.strategy=fedavg, fedadam")
    )

    assert len(made) == 8
    assert made[3].name == "d-learning-rate-0-1-strategy-fedadam-s1"
    config = made[3].config
    assert (config.train.learning_rate, config.aggregation.strategy) == (0.1, "fedadam")


def test_a_value_may_be_a_list() -> None:
    made = sweeps.members("demo", "d", 1, ("train.learning_rate=[[1, 0.5], [3, 0.1]],0.2",))

    assert [member.config.learning_rate(3) for member in made] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("each", "field", "reason"),
    [
        ("train.epochs", "--set-each", "is not section.key=value,value"),
        ("run.seed=1,2", "--set-each", "is what --seeds is for"),
        ("train.epochs=1,0", "train.epochs", "0 is too small"),
        ("train.epoch=1", "train.epoch", "did you mean train.epochs"),
        ("task.day=2020-01-01", "task.day", "no such field"),
        ("train.epochs=1,1", "--set-each", "two runs would be called d-epochs-1-s0"),
        (f"data.dir={'x' * 60}", "--run", "at most 63"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(
    each: str, field: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        named(each)
    assert caught.value.field == field


def test_a_run_of_that_name_must_have_that_config(store: Store) -> None:
    one, two = sweeps.members("demo", "d", 2, ())
    runs.start_run(store, one.name, one.config, 3)
    sweeps.check(store, [one, two])
    runs.start_run(store, two.name, one.config, 3)

    with pytest.raises(ConfigError, match=r"run\.seed: is another in run d-s1"):
        sweeps.check(store, [one, two])
