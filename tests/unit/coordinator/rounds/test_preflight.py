"""The sites that may train after the preflight: majorities, late joiners, restarts, garbage. Redis, but no workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from fl_queue.config import loading, task_catalog
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import preflight, runs
from fl_queue.errors import MessageError
from fl_queue.protocol import site_facts
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import CLIENT_TELL, FLJob

AB, BA = {"classes": "2: a, b"}, {"classes": "2: b, a"}


class Sites:
    """A run before its first round, whose clients answer as a test has them."""

    def __init__(self, store: Store, *overrides: str) -> None:
        self.store = store
        self.config = loading.load("mnist-3v7", ("run.task=own:Task", *overrides), {})
        self.run = runs.start_run(store, "sites", self.config, 3).run_id

    @property
    def state(self) -> RunState:
        found = self.store.control.runs.get(self.run)
        assert found is not None
        return found

    def serve(self, client: str, worker: str = "1") -> None:
        """A worker begins to serve a client."""
        fields = {"worker": f"{client}_{worker}"}
        assert self.store.control.leases.hold(keyspace.client_holder(client), "token", 60, fields)

    def admit(self, *alive: str) -> preflight.EligibleClients:
        return preflight.admit(self.store, self.state, self.config, sorted(alive))

    def ticket(self, client: str) -> JobTicket:
        return JobTicket.from_dict(
            json.loads(self.store.control.runs.site_reports(self.run)[client])["ticket"]
        )

    def report(self, **facts: Mapping[str, Any]) -> None:
        for client, reported in facts.items():
            answer = json.dumps({"job": self.ticket(client).job, "facts": reported})
            self.store.control.clients.set_site_facts(client, self.run, answer)

    def wait(self) -> None:
        """As if the run had waited for as long as it does."""
        longest = str(preflight.MAX_WAIT_S)
        self.store.control.redis.hset(keyspace.run(self.run), "waited_s", longest)

    def named(self) -> dict[str, str]:
        found = self.store.control.events.read({keyspace.events(self.run): "0-0"}, None)
        return {e["client"]: e["what"] for _, _, e in found if e["event"] == "site_differs"}


@pytest.fixture
def sites(store: Store) -> Sites:
    made = Sites(store)
    for client in ("a", "b", "c", "d"):
        made.serve(client)
    return made


def test_each_is_asked_once_and_most_decide(sites: Sites) -> None:
    assert sites.admit("a", "b", "c").problem == preflight.WAITING
    assert sites.admit("a", "b", "c").problem == preflight.WAITING
    for client in ("a", "b", "c"):
        ticket = sites.ticket(client)
        assert (ticket.function, ticket.number) == (CLIENT_TELL, 0)
        assert dispatch.queued(sites.store, keyspace.client_queue(client)) == [ticket.job]

    sites.report(a=AB, b=BA)
    assert sites.admit("a", "b", "c").problem == preflight.WAITING
    sites.report(c=AB)
    admitted = sites.admit("a", "b", "c")
    assert (admitted.clients, admitted.problem) == (["a", "c"], "")
    assert admitted.out == {"b": "classes 2: b, a; others have 2: a, b"}
    sites.admit("a", "b", "c")
    assert list(sites.named()) == ["b"]
    assert "left out" in sites.named()["b"]
    assert preflight.lines(sites.store, sites.state) == [f"preflight: b: {sites.named()['b']}"]


def test_late_joiners_are_held_against_the_first_and_no_majority_moves(sites: Sites) -> None:
    sites.admit("a")
    sites.report(a=AB)
    assert sites.admit("a").clients == ["a"]

    late = sites.admit("a", "b", "c", "d")
    assert late.clients == [
        "a"
    ]  # The round does not wait for them, and no site trains before it has reported.
    assert "not reported yet" in late.out["b"]
    sites.report(b=BA, c=BA, d=AB)
    assert sites.admit("a", "b", "c", "d").clients == ["a", "d"]


def test_without_a_majority_no_site_trains_until_one_is_mended(sites: Sites) -> None:
    sites.admit("a", "b")
    sites.report(a=AB, b=BA)
    problem = sites.admit("a", "b").problem
    assert "neither side" in problem
    assert "a: 2: a, b; b: 2: b, a" in problem

    sites.store.control.leases.release(keyspace.client_holder("b"), "token")
    sites.serve("b", "2")
    assert sites.admit("a", "b").problem == preflight.WAITING
    sites.report(b=AB)
    assert sites.admit("a", "b").clients == ["a", "b"]


def test_code_and_shapes_are_named_and_exclude_no_site(sites: Sites) -> None:
    sites.admit("a", "b", "c")
    code = {"code": "1"}
    sites.report(a=AB | code, b=AB | code, c=AB | {"code": "2", "input": "float32 (9)"})
    assert sites.admit("a", "b", "c").clients == ["a", "b", "c"]
    assert sites.named() == {"c": "code 2; others have 1"}


def test_a_silent_site_is_not_waited_for_without_end(sites: Sites) -> None:
    sites.admit("a", "b")
    sites.report(a=AB)
    assert sites.admit("a", "b").problem == preflight.WAITING
    sites.wait()
    assert sites.admit("a", "b").clients == ["a"]
    sites.report(b=AB)
    assert sites.admit("a", "b").clients == ["a", "b"]


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_job_without_an_answer_is_tried_again_a_few_times(sites: Sites, status: str) -> None:
    redis = sites.store.control.redis
    for attempt in range(1, preflight.ATTEMPTS + 1):
        sites.admit("a")
        assert sites.ticket("a").attempt == attempt
        redis.hset(f"rq:job:{sites.ticket('a').job}", "status", status)
    admitted = sites.admit("a")
    assert admitted.clients == ["a"]
    assert sites.named()["a"].startswith(f"cannot report what it would train on: its job {status}")


def test_the_record_of_a_site_keeps_its_keys_in_redis(sites: Sites) -> None:
    sites.admit("a")
    sites.report(a=AB)
    sites.admit("a")

    record = json.loads(sites.store.control.runs.site_reports(sites.run)["a"])

    # The key in Redis stays as older releases read it.
    assert record["told"] == AB  # codespell:ignore told
    assert set(record) == {
        *("start", "worker", "ticket", "named", "unable", "since", "tries", "failed_in"),
        "told",  # codespell:ignore told
    }


@pytest.mark.parametrize(
    "garbage",
    ["", "{", "[]", "1", "null", '{"classes": 1}', '{"Classes": "1"}', "x" * 70_000, '{"a": NaN}'],
)
def test_garbage_counts_as_a_site_that_cannot_report(sites: Sites, garbage: str) -> None:
    sites.admit("a", "b")
    sites.report(b=AB)
    job = sites.ticket("a").job
    sites.store.control.clients.set_site_facts(
        "a", sites.run, f'{{"job": "{job}", "facts": {garbage}}}'
    )
    assert sites.admit("a", "b").clients == ["a", "b"]
    assert "cannot report" in sites.named()["a"]


def test_an_answer_of_another_question_or_another_type_is_none(sites: Sites) -> None:
    sites.admit("a")
    sites.store.control.clients.set_site_facts(
        "a", sites.run, json.dumps({"job": "old", "facts": AB})
    )
    assert sites.admit("a").problem == preflight.WAITING
    key = keyspace.client_facts("a", sites.run)
    sites.store.control.redis.delete(key)
    sites.store.control.redis.lpush(key, "x")
    assert sites.admit("a").problem == preflight.WAITING
    assert not sites.store.control.redis.exists(key)
    sites.report(a=AB)
    assert sites.admit("a").clients == ["a"]


@pytest.mark.parametrize("changed", ["segment", "rounds_wanted"])
def test_a_run_that_is_gone_on_with_asks_again(sites: Sites, changed: str) -> None:
    sites.admit("a")
    sites.report(a=AB)
    assert sites.admit("a").clients == ["a"]
    sites.store.control.redis.hset(keyspace.run(sites.run), changed, "9")
    assert sites.admit("a").problem == preflight.WAITING
    sites.report(a=BA)
    assert sites.admit("a").clients == ["a"]


def test_all_sites_are_asked_and_compared_where_the_config_leaves_facts_open(store: Store) -> None:
    for task, options, compared in (
        ("mnist-2nn", {}, False),
        ("csv", {"features": "a,b"}, False),
        ("csv", {"features": ""}, True),
        ("image-folder", {"classes": "cat,dog"}, False),
        ("image-folder", {"classes": ""}, True),
        ("own:Task", {}, True),
    ):
        assert task_catalog.may_differ(task, options) is compared
        raw = {"run": {"task": task}, "task": options}
        assert preflight.is_asked(RunConfig.from_dict(raw))
        assert preflight.is_compared(RunConfig.from_dict(raw)) is compared
    off = Sites(store, "run.preflight=off")
    assert off.admit("a", "b").clients == ["a", "b"]
    assert store.control.runs.site_reports(off.run) == {}
    virtual = RunConfig.from_dict(
        {"run": {"task": "own:Task"}, "clients": {"kind": "simulation", "count": 3}}
    )
    assert not preflight.is_asked(virtual)


def test_a_site_without_data_is_left_out_where_nothing_is_compared(store: Store) -> None:
    sites = Sites(store, "run.task=mnist-3v7")
    for client in ("a", "b"):
        sites.serve(client)
    # Version 0 does not depend on data, so no site is waited for; before round 1 all are.
    first = preflight.admit(store, sites.state, sites.config, ["a", "b"], "initialise")
    assert (first.clients, first.problem) == (["a", "b"], "")
    assert sites.admit("a", "b").problem == preflight.WAITING
    sites.report(a={"code": "1"}, b={"problem": "DataError (line 6)", "cannot": "yes"})

    admitted = sites.admit("a", "b")
    assert (admitted.clients, list(admitted.unable)) == (["a"], ["b"])
    assert "it cannot train: DataError (line 6)" in admitted.out["b"]
    assert "its worker is started again, and asked again after 60 s" in admitted.out["b"]
    assert sites.admit("a", "b").clients == ["a"]
    assert list(sites.named()) == ["b"]


def test_a_site_that_cannot_train_is_asked_again_by_another_worker_or_after_a_growing_pause(
    store: Store,
) -> None:
    sites = Sites(store, "run.task=mnist-3v7")
    sites.serve("a")
    sites.serve("b")
    cannot = {"problem": "ConfigError", "cannot": "yes"}
    sites.admit("a", "b")
    sites.report(a={}, b=cannot)
    for pause in ("60 s", "120 s", "240 s"):
        assert sites.admit("a", "b").out["b"].endswith(pause)
        asked = sites.ticket("b").job
        site = json.loads(store.control.runs.site_reports(sites.run)["b"])
        store.control.redis.hset(
            keyspace.sites(sites.run), "b", json.dumps(site | {"since": site["since"] - 3600})
        )
        assert sites.admit("a", "b").clients == ["a"]  # Out until it has reported something else.
        assert sites.ticket("b").job != asked
        sites.report(b=cannot)
    assert sites.admit("a", "b").out["b"].endswith("480 s")

    store.control.leases.release(keyspace.client_holder("b"), "token")
    sites.serve("b", "2")
    assert sites.admit("a", "b").clients == ["a"]
    sites.report(b={})
    assert sites.admit("a", "b").clients == ["a", "b"]


def test_long_lists_differ_by_their_digest() -> None:
    one = [f"class-{number}" for number in range(1000)]
    other = [*one[:-1], "another"]
    known = {*one, *other, "a" * 70, "a" * 71, "a\nb", "a b"}
    assert len(site_facts.listed(one, known)) <= site_facts.LONGEST
    assert site_facts.listed(one, known) != site_facts.listed(other, known)
    assert site_facts.listed(one, known).startswith("1000: class-0, class-1")
    assert site_facts.listed(["a" * 70], known) != site_facts.listed(["a" * 71], known)
    assert site_facts.listed(["a\nb"], known) != site_facts.listed(["a b"], known)
    assert site_facts.listed(one, one[1:]).startswith("1000: ?, class-1")
    assert len(site_facts.listed(one, one[1:])) <= site_facts.LONGEST
    with pytest.raises(MessageError):
        site_facts.check({f"n{number}": "x" for number in range(site_facts.MOST + 1)})


def test_with_warnings_only_all_sites_may_train(store: Store) -> None:
    sites = Sites(store, "run.preflight=warn")
    sites.serve("a")
    sites.serve("b")
    assert sites.admit("a", "b").problem == preflight.WAITING
    sites.report(a=AB, b=BA)
    assert sites.admit("a", "b").clients == ["a", "b"]
    assert sites.named() == {"b": "classes 2: b, a; others have 2: a, b"}


@pytest.mark.parametrize("what", ["popped and never started", "its end not recorded"])
def test_a_question_that_was_lost_is_asked_again_of_the_same_worker(
    store: Store, what: str
) -> None:
    sites = Sites(store)
    sites.serve("a")
    sites.admit("a")
    lost, redis = sites.ticket("a"), store.control.redis
    redis.lrem(f"rq:queue:{lost.queue}", 0, lost.job)
    if what == "its end not recorded":
        fields = {"status": "started", "worker_name": "a_1"}
        redis.hset(FLJob.key_for(lost.job), mapping=fields)
        store.control.leases.hold(
            keyspace.worker("a_1"), "token", 60, {"role": "client", "job": ""}
        )
    sites.admit("a")
    assert sites.ticket("a") == lost  # It may be about to start.

    watch = preflight._watch(store)
    watch.start_s = watch.lease_s = 0.0
    sites.admit("a")
    assert (sites.ticket("a").attempt, sites.ticket("a").job == lost.job) == (2, False)
