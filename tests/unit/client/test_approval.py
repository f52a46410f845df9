"""Answers that wait for approval at a site: the report of its worker, and the decision for each answer."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_queue.client import approval, disclosure, outbox
from fl_queue.client.site import WorkerSettings
from fl_queue.errors import ConfigError
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import AwaitedUpdate

MANIFEST = Manifest(
    (
        TensorSpec("norm.count", (), "integer_buffer"),
        TensorSpec("norm.mean", (3,), "float_buffer"),
        TensorSpec("weight", (40, 30), "parameter"),
        TensorSpec("~extra/weight", (40, 30), "extra"),
    )
)
HEADER = Header(
    kind="update",
    run="demo-3f2a9c",
    round=3,
    client="hospital-a",
    token="token-1",
    num_examples=600,
    metrics={"num_examples": 50, "correct": 40},
)


@pytest.fixture
def site(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(state_dir=tmp_path, client="hospital-a", approve=True)


def written(site: WorkerSettings, encoding: str = "float32", token: str = "token-1") -> Path:
    """An update in the outbox, as a client's job writes it."""
    draw = np.random.default_rng(7)
    body = np.array([12], "<i8").tobytes()
    body += draw.standard_normal(2403, "<f4").tobytes()
    header = replace(
        HEADER,
        token=token,
        codec=encoding,
        tensors=codec.entries(encoding, MANIFEST),
        body_bytes=codec.encoded_nbytes(encoding, MANIFEST),
    )
    return outbox.write(site.outbox, header, [codec.encode(encoding, MANIFEST, body, 5)])


def reported(site: WorkerSettings) -> AwaitedUpdate | None:
    return AwaitedUpdate.all_from_json(approval.pending_as_json(site) or "{}").get("demo-3f2a9c")


def test_an_answer_waits_until_it_is_decided_on_and_the_decision_is_about_that_one(
    site: WorkerSettings,
) -> None:
    path = written(site)
    kept = outbox.read(path)
    assert kept is not None
    assert approval.decision(path, kept[0]) is None
    assert (approval.pending_as_json(site), approval.waiting(site.state_dir)) == ("", [])

    approval.mark_pending(path, "job-1")
    first = reported(site)
    assert first is not None
    assert (first.round, first.job, first.decided) == (3, "job-1", False)
    approval.mark_pending(path, "job-2")
    assert reported(site) == replace(first, job="job-2")

    [item] = approval.find(site.state_dir, ("hospital-a_demo-3f2a9c_3",))
    approval.decide(item, approved=False, reason="no\nconsent")
    assert reported(site) == replace(first, job="job-2", decided=True)
    found = approval.decision(path, kept[0])
    assert found == approval.Decision(False, "declined by its site: no consent")
    with pytest.raises(ConfigError, match="does not wait in"):
        approval.find(site.state_dir, (item.name,))
    written(site, token="token-2")
    with pytest.raises(ConfigError, match=rf"did you mean {item.name}\?"):
        approval.find(site.state_dir, (item.name.replace("hospital", "hopsital"),))

    # An answer that is written again is a new one: it has no decision.
    again = outbox.read(written(site, token="token-2"))
    assert again is not None
    assert approval.decision(path, again[0]) is None
    assert not path.with_suffix(".decision").exists()
    assert [item.header.token for item in approval.waiting(site.state_dir)] == ["token-2"]


def test_what_is_gone_or_need_not_be_asked_about_any_more_is_decided(site: WorkerSettings) -> None:
    path = written(site)
    approval.mark_pending(path, "job-1")

    without = reported(replace(site, approve=False))
    assert without is not None
    assert without.decided
    path.unlink()
    gone = reported(site)
    assert gone is not None
    assert gone.decided


def test_the_sweep_leaves_nothing_of_an_ended_round(site: WorkerSettings) -> None:
    path = written(site)
    approval.mark_pending(path, "job-1")
    approval.decide(approval.waiting(site.state_dir)[0], approved=True)

    assert outbox.sweep(site.outbox, "hospital-a", lambda run, number, who: False) == 1
    assert len(list(site.outbox.iterdir())) == 3
    assert outbox.sweep(site.outbox, "hospital-a", lambda run, number, who: True) == 0
    assert list(site.outbox.iterdir()) == []


def test_a_failure_and_version_0_need_no_approval() -> None:
    kinds = ("update", "evaluation", "failure", "model")

    assert [approval.needed(replace(HEADER, kind=kind)) for kind in kinds] == [1, 1, 0, 0]


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8", "topk:0.1"])
def test_what_would_leave_is_shown_as_it_is_decoded(site: WorkerSettings, encoding: str) -> None:
    kept = outbox.read(written(site, encoding))
    assert kept is not None
    facts = disclosure.describe_update(*kept)

    numbers = codec.LazyDecodedTensors(encoding, MANIFEST, kept[1])
    norms = {name: float(np.linalg.norm(array.astype(float))) for name, array in numbers.items()}
    shown = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert {name: tensor["norm"] for name, tensor in shown.items()} == pytest.approx(norms)
    assert facts["norm"] == pytest.approx(math.hypot(*norms.values()))
    assert shown["weight"]["largest"] == pytest.approx(np.abs(numbers["weight"]).max())
    assert shown["weight"]["dtype"] == codec.wire_dtype(encoding, MANIFEST.tensors[2])
    [file] = site.outbox.iterdir()
    assert facts["bytes"] == file.stat().st_size
    text = "\n".join(disclosure.format_update(facts))
    assert '  metrics        {"correct":40,"num_examples":50}' in text
    assert "  num_examples   600" in text
    assert f"  body_digest    {kept[0].body_digest}" in text
    assert json.loads(json.dumps(facts)) == facts


def test_a_long_table_is_summarised_in_text_and_whole_in_json(site: WorkerSettings) -> None:
    kept = outbox.read(written(site))
    assert kept is not None
    table = [[0] * 999 + [3], [1] + [0] * 999]
    header = replace(kept[0], metrics={"num_examples": 4, "logit_histograms": table})
    facts = disclosure.describe_update(header, kept[1])

    text = "\n".join(disclosure.format_update(facts))
    assert '"logit_histograms":"2000 numbers, 2 of them not 0 (--json shows them)"' in text
    assert '"num_examples":4' in text
    assert facts["header"]["metrics"]["logit_histograms"] == table
    few = {**facts, "header": {"metrics": {"confusion": [[2, 1], [0, 1]]}}}
    assert '{"confusion":[[2,1],[0,1]]}' in "\n".join(disclosure.format_update(few))
