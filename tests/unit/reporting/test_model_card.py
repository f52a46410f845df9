"""Contents of a model card for runs of every kind; parts of its text come from untrusted clients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from markdown_it import MarkdownIt

from fl_queue.common import escaping
from fl_queue.config import loading
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.reporting import model_card
from fl_queue.reporting.model_card import CardData
from fl_queue.store import Store, keyspace
from tests.support.hostile_text import EVIL
from tests.support.recorded_rounds import record, start_scored_run

ENVIRONMENT = {"torch": "2.14", "device": "<script>|x\n# y"}


@pytest.fixture
def facts(store: Store) -> CardData:
    """A tested run of three versions, whose clients report 10 and 20 examples."""
    state = start_scored_run(store, "pilot", [0.5, 0.9])
    manifest = Manifest(
        (
            TensorSpec("bn.running_var", (5,), "float_buffer"),
            TensorSpec("bn.weight", (4,), "parameter"),
            TensorSpec("w", (3,), "parameter"),
        )
    )
    return CardData(
        state=state,
        version=2,
        digest="d" * 64,
        config=loading.load("mnist-3v7", ("data.partition=site", "data.source=full"), {}),
        manifest=manifest,
        records=[record(1, 0), record(2, 1), record(3, 2)],
        tested={"accuracy": 0.75, "loss": 0.5},
        examples={"hospital-a": 10, "hospital-b": 20},
        environments=[ENVIRONMENT],
        usage=ModelUsage("raw", "scores", ("no", "yes"), {"columns": ["a", "b"]}),
    )


def test_the_front_matter_has_the_results_of_the_central_test(facts: CardData) -> None:
    head = model_card.render(facts, "m.pt", "torch").split("---")[1]

    assert 'model-index:\n- name: "pilot"' in head
    assert "    - type: accuracy\n      value: 0.75" in head


def test_it_describes_use_metrics_data_and_training(facts: CardData) -> None:
    text = model_card.render(facts, "m.pt", "torch")

    assert 'torch.load("m.pt", weights_only=True)' in text
    assert "- Classes: 0: no, 1: yes\n- columns: a, b" in text
    assert "| central test | 0.7500 |" in text
    assert "| client hospital-a | 0.7000 |" in text
    assert "2 clients took part, with 30 training examples, as reported by them." in text
    assert "| rounds | 2, of 2 to 2 updates each; 0 abandoned; 25 s |" in text
    assert "| parameters | 7 |" in text
    assert "| numbers in buffers | 5 |" in text
    assert "no central test" not in text


def test_what_clients_wrote_stays_in_its_cell(facts: CardData) -> None:
    text = model_card.render(facts, "m.pt", "torch")

    assert "| device | &lt;script>\\|x # y |" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("written", "count"), [("12", 12), ("\N{SUPERSCRIPT TWO}", 0), ("٣", 0), ("9" * 5000, 0)]
)
def test_how_many_examples_a_client_has_is_a_number_or_not_known(
    store: Store, facts: CardData, written: str, count: int
) -> None:
    uniform = loading.load("mnist-3v7", ("aggregation.weighting=uniform",), {})
    store.control.redis.hset(keyspace.client("a"), "num_examples", written)
    records = [replace(record(1, 0), weights={"a": 1})]
    assert model_card._examples(store, uniform, records, 2) == {"a": count}


@pytest.mark.parametrize("evil", EVIL)
def test_no_name_is_markup(facts: CardData, evil: str) -> None:
    """Of a task, its classes, metrics, clients and environments; and the config in its block."""
    usage = ModelUsage(evil, evil, (evil,), {evil: [evil]})
    config = replace(facts.config, task={"note": "```\n" + evil})
    records = [record(3, 2, client_validation={evil: {evil: 0.5}, "a": {"accuracy": 0.5}})]
    hostile = replace(
        facts, config=config, usage=usage, environments=[{"device": evil}], tested={evil: 0.5},
        examples={evil: 3}, records=[*facts.records, *records],
    )  # fmt: skip

    tokens = list(
        flat(
            MarkdownIt("default", {"html": True}).parse(model_card.render(hostile, "m.pt", "torch"))
        )
    )
    kinds = {token.type for token in tokens}
    assert not kinds & {"link_open", "image", "html_inline", "em_open", "strong_open", "s_open"}
    assert [token.content for token in tokens if token.type == "html_block"] == [
        "<details><summary>The whole config</summary>\n",
        "</details>\n",
    ]
    assert [token.info for token in tokens if token.type == "fence"] == ["python", "toml"]
    assert sum(token.type == "table_open" for token in tokens) == 4
    text = " ".join(token.content for token in tokens if token.type in ("text", "text_special"))
    shown_as = escaping.line(evil.replace("\n", " "))
    assert not re.search("[\x1b\x9b\u202e]", text)
    assert shown_as in text or not shown_as.isalnum()
    lines = [token.content for token in tokens if token.type == "inline"]
    assert [line for line in lines if line.startswith("client ")] == [
        *(
            f"client {escaping.markdown(client)}".replace("\\|", "|")
            for client in sorted([evil, "a"])
        )
    ]


def flat(tokens: Iterable[Any]) -> Iterator[Any]:
    """Markdown's tokens with what is in them."""
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def test_many_clients_are_summed_up(facts: CardData) -> None:
    own = {f"sim-{number:03d}": {"accuracy": number / 200} for number in range(1, 101)}
    many = replace(
        facts,
        tested={},
        examples={client: 100 + number for number, client in enumerate(own)},
        records=[record(1, 0), record(2, 1), record(3, 2, client_validation=own)],
    )

    text = model_card.render(many, "m.pt", "torch")

    assert "sim-050" not in text
    assert "accuracy over 100 clients: least 0.005, median 0.2525, most 0.5" in text
    assert "Examples of a client: least 100, median 149.5, most 199" in text
    assert "There was no central test of this version." in text
    assert "model-index" not in text


def test_unknown_facts_are_stated(facts: CardData) -> None:
    private = replace(facts.manifest, private=("bn.weight",))
    bare = replace(
        facts, usage=None, manifest=private, examples={}, environments=[], records=[], tested={}
    )

    text = model_card.render(bare, "m.safetensors", "safetensors")

    for part in (
        "The task is code of its owner",
        "This version has not been judged.",
        "No client reported its number of examples",
        "no longer in Redis",
        "1 tensors are private to each client",
    ):
        assert part in text


def test_with_another_weighting_it_takes_the_counts_of_clients(store: Store) -> None:
    state = start_scored_run(store, "uniform", [0.5], "aggregation.weighting=uniform")
    loaded = loading.load("mnist-3v7", ("aggregation.weighting=uniform",), {})
    store.control.redis.hset("flq:client:hospital-a", "num_examples", 40)

    found = model_card._examples(
        store, loaded, [record(1, 0, weights={"hospital-a": 1, "b": 1})], 1
    )

    assert found == {"hospital-a": 40, "b": 0}
    assert state.version == 1
