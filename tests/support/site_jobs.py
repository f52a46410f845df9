"""One job of a site without servers: what its worker asks for, and the task and context that come of it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fl_queue.client import site_task
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol import virtual_clients
from fl_queue.protocol.trainer_messages import Call, Request
from fl_queue.tasks.base import Task
from fl_queue.tasks.context import ClientContext


@dataclass(frozen=True)
class SiteJob:
    """A training job of a client's worker. Args: ``shares``: of the run."""

    config: RunConfig
    site: WorkerSettings = field(default_factory=WorkerSettings)
    client: str = "a"
    population: Sequence[str] = ("a",)
    shares: int = 1
    number: int = 1

    def request(self, call: Call = Call.train) -> Request:
        return Request(
            call=call,
            run="run-abc123",
            name="run",
            config=self.config.to_dict(),
            client=self.client,
            round=self.number,
            share=virtual_clients.share_of(self.client, list(self.population)),
            shares=self.config.data.shares or self.shares,
        )

    def task(self) -> Task:
        return site_task.task_of(self.site, self.config)

    def context(self) -> ClientContext:
        return site_task.context_of(self.site, self.config, self.request())
