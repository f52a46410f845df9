"""Config sections: one declaration gives types, validation, defaults and what a run keeps."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

import fl_queue
from fl_queue.config.run_config import RunConfig
from fl_queue.config.schema import OPEN, SECTIONS, TABLES, is_fixed
from fl_queue.config.section import Rate, Section, Share
from fl_queue.config.settings import RunSettings
from fl_queue.errors import ConfigError

PLAIN = RunConfig.from_dict({})
EVERY_FIELD = [(kind, name) for kind in SECTIONS.values() for name in kind.options()]


def test_the_sections_of_a_config_are_those_of_the_schema() -> None:
    assert tuple(field.name for field in fields(RunSettings)) == TABLES
    assert tuple(PLAIN.to_dict()) == (*SECTIONS, *OPEN)
    for name, kind in SECTIONS.items():
        assert type(getattr(PLAIN, name)) is kind
        assert (kind.NAME, bool(kind.doc())) == (name, True)


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
def test_a_default_is_a_value_that_its_own_field_accepts(kind: type[Section], name: str) -> None:
    declared = kind.options()[name]
    parsed = declared.parse(name, declared.default)
    assert (parsed, type(parsed)) == (declared.default, type(declared.default))
    assert getattr(kind(), name) == declared.default
    assert declared.doc


def test_the_annotation_decides_kind_and_choices() -> None:
    options = SECTIONS["round"].options()
    assert (options["mode"].kind, options["mode"].choices) == ("str", ("sync", "async"))
    assert options["cohort"].kind == "share"
    assert SECTIONS["train"].options()["learning_rate"].kind == "rate"
    assert (Share, Rate) == (int | float, float | tuple[tuple[int, float], ...])


def test_parsed_values_have_the_declared_types() -> None:
    config = RunConfig.from_dict(
        {
            "train": {"learning_rate": [[1, 0.5], [3, 0.1]]},
            "clients": {"include": ["a", "b"]},
            "round": {"deadline_s": 7},
        }
    )
    assert config.train.learning_rate == ((1, 0.5), (3, 0.1))
    assert config.clients.include == ("a", "b")
    assert (config.round.deadline_s, type(config.round.deadline_s)) == (7.0, float)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs") as caught:
        SECTIONS["train"].parse({"epoch": 3})
    assert caught.value.field == "train.epoch"


def test_sections_are_read_only_and_a_changed_one_is_another() -> None:
    with pytest.raises(AttributeError):
        PLAIN.train.epochs = 3  # type: ignore[misc]
    changed = replace(PLAIN, train=replace(PLAIN.train, epochs=3))
    assert (changed.train.epochs, PLAIN.train.epochs) == (3, 1)
    assert changed.digest != PLAIN.digest


def test_what_belongs_to_the_machine_is_not_recorded() -> None:
    config = RunConfig.from_dict(
        {"redis": {"url": "redis://here", "blob_url": "redis://there"}, "model": {"initial": "a"}}
    )
    record = config.record()
    assert not {"url", "blob_url"} & set(record["redis"])
    assert "initial" not in record["model"]
    assert config.digest == PLAIN.digest


def test_a_run_keeps_what_decides_whose_data_and_which_model_it_has() -> None:
    kept = {f"{kind.NAME}.{name}" for kind, name in EVERY_FIELD if is_fixed(f"{kind.NAME}.{name}")}
    assert kept == {
        "run.task", "run.seed", "run.purpose", "run.rows", "clients.kind", "clients.count", "data.source", "data.partition",
        "data.alpha", "data.shards_per_client", "data.samples_per_client", "data.labels_per_client",
        "data.exponent", "data.sizes", "data.noise", "data.rotation", "data.shares", "data.validation_fraction",
        "data.train_per_class", "data.validation_per_class", "aggregation.strategy",
        "model.base", "model.constant", "model.private", "update.error_feedback", "redis.chunk_bytes",
        "secure.enabled", "secure.bits", "secure.min_cohort", "secure.confirm", "secure.keys_s", "secure.unmask_s",
        "secure.max_corrupt", "secure.max_dropout", "secure.metrics",
    }  # fmt: skip
    assert is_fixed("task.classes")
    assert not is_fixed("strategy.mu")
    assert not is_fixed("gone.field")


@pytest.mark.parametrize(
    ("raw", "field"),
    [({"mode": "async", "quorum": 2}, "round.quorum"), ({"buffer": 2}, "round.buffer")],
)
def test_a_field_of_the_other_mode_has_no_effect_and_is_refused(
    raw: dict[str, object], field: str
) -> None:
    with pytest.raises(ConfigError, match="has no effect with") as caught:
        RunConfig.from_dict({"round": raw})
    assert caught.value.field == field


def test_reading_by_key_still_works_and_warns() -> None:
    config = fl_queue.load_config("mnist-3v7", environ={})
    old: dict[str, dict[str, object]] = {name: getattr(config, name) for name in SECTIONS}
    with pytest.warns(DeprecationWarning, match=r"write \.rounds instead of"):
        assert old["run"]["rounds"] == config.run.rounds
    with pytest.warns(DeprecationWarning, match="write"):
        assert dict(old["train"]) == {
            name: getattr(config.train, name) for name in config.train.options()
        }
    with pytest.warns(DeprecationWarning, match="write"):
        assert {**old["data"], "dir": "here"}["dir"] == "here"
    with pytest.raises(KeyError):
        _ = old["run"]["round"]
    assert "round" not in old["run"]
    assert len(old["security"]) == 1
