"""Requests name a base part's file; a damaged one is neither trained from nor left, and no sweep takes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.client import outbox
from fl_queue.client.asking import answer_of, model_file
from fl_queue.client.assignment import RoundModel
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.models import host_cache
from fl_queue.models.host_cache import HostCache
from fl_queue.protocol.base_part import BasePart
from fl_queue.protocol.trainer_messages import Call, Request
from fl_queue.store import Store, keyspace
from tests.support.site_rounds import RUN, SiteRounds, settings_of

#: Once BASE_SHIFT is there, its build has other frozen values than version 0.
OWN = """
import os
import torch
from torch import nn
from fl_queue.tasks.mnist import ThreesAndSevens

class Frozen(ThreesAndSevens):
    def build_model(self):
        model = nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 1))
        model[0].requires_grad_(False)
        if "BASE_SHIFT" in os.environ:
            with torch.no_grad():
                model[0].weight.add_(1)
        return model
"""
CONFIG = RunConfig.from_dict({"run": {"task": "asking_own:Frozen"}, "train": {"epochs": 1}})
CHUNK = 8192


class Site:
    """A host whose build is not the run's, and a data server that has the base part."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self.settings, self.cache = settings, HostCache(store, settings.cache, RUN, CHUNK)
        self.rounds = SiteRounds(settings, CONFIG, Resident(settings).handle)
        body = self.rounds.initialise().body
        assert self.rounds.manifest is not None
        assert self.rounds.manifest.base is not None
        self.base: BasePart = self.rounds.manifest.base
        self.body = body[self.rounds.manifest.nbytes :]
        pieces = [self.body[i : i + CHUNK] for i in range(0, len(self.body), CHUNK)]
        blob = keyspace.model_blob(RUN, self.base.digest)
        store.data.chunks.put(blob, map(memoryview, pieces), None)
        self.fetched = 0

    def fetch(self) -> Path:
        self.fetched += 1
        self.cache.fetch_base(self.base)
        return self.file

    @property
    def file(self) -> Path:
        return host_cache.base_path(self.settings.cache, self.base)

    def request(self) -> Request:
        made = self.rounds.request(Call.train, 1)
        assert made.model is not None
        assert self.rounds.manifest is not None
        model = RoundModel(self.rounds.manifest, Path(made.model.place).name)
        return replace(made, model=model_file(self.settings, RUN, model))

    def outcome(self) -> str:
        """That of a training; its response stays in the outbox."""
        return answer_of(self.settings, self.request(), self.rounds.ask, print, self.fetch).outcome

    def body_of_update(self) -> bytes:
        path = outbox.path_of(self.settings.outbox, RUN, 1, "a")
        found = outbox.read(path)
        assert found is not None
        body = bytes(found[1])
        path.unlink()
        return body


@pytest.fixture
def site(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "asking_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("BASE_SHIFT", raising=False)
    made = Site(store, settings_of(tmp_path / "state", allow=("asking_own:Frozen",)))
    monkeypatch.setenv("BASE_SHIFT", "1")
    return made


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "changed": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "cut": lambda body: body[:100],
    "longer": lambda body: body + b"\0",
    "empty": lambda body: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_base_part_is_repaired_before_it_is_trained_from(site: Site, damage: str) -> None:
    assert site.request().model.base is None  # type: ignore[union-attr]
    assert site.outcome() == "done"
    good = site.body_of_update()
    site.file.write_bytes(DAMAGES[damage](site.body))

    assert site.outcome() == "done"
    assert site.body_of_update() == good
    assert site.file.read_bytes() == site.body
    assert site.outcome() == "done"
    assert site.fetched == 2  # The first time, and for the damage.


def test_a_base_part_that_went_missing_after_it_was_named_is_fetched(site: Site) -> None:
    site.fetch()
    asked = site.request()
    site.file.unlink()

    assert site.rounds.ask(asked, print).outcome == "needs_base"
    assert answer_of(site.settings, asked, site.rounds.ask, print, site.fetch).outcome == "done"


def test_a_base_part_that_another_run_has_fetched_stays_while_this_run_lives(site: Site) -> None:
    HostCache(site.cache.store, site.settings.cache, "other-abc123", CHUNK, RUN).fetch_base(
        site.base
    )
    os.utime(site.file, (1, 1))
    assert site.request().model.base is not None  # type: ignore[union-attr]
    assert site.file.stat().st_mtime > 1
    os.utime(site.file, (1, 1))

    host_cache.sweep(site.settings.cache, lambda run: run != RUN)
    assert site.file.exists()
    host_cache.sweep(site.settings.cache, lambda run: True)
    assert not site.file.exists()
