"""Rounds of one client without servers: requests, the files that they name, and versions made of its updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.client import outbox
from fl_queue.client.asking import Ask
from fl_queue.client.site import WorkerSettings
from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, extra_name
from fl_queue.protocol.records import TRAINER_JOB
from fl_queue.protocol.trainer_messages import (
    Answer,
    Call,
    KeptState,
    ModelFile,
    Progress,
    Request,
)
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import state_manifest, update_manifest

RUN = "run-0123456789ab"


@dataclass(frozen=True)
class Response:
    """A response in the outbox: what an attempt would push. Args: ``state``: the client state's file."""

    header: Header
    body: bytes
    state: bytes = b""

    def without_time(self) -> Response:
        """The same, but for what no two trainings have alike."""
        environment = {k: v for k, v in self.header.environment.items() if k != TRAINER_JOB}
        header = replace(self.header, train_s=0.0, token="", environment=environment)
        return replace(self, header=header)


@dataclass
class SiteRounds:
    """
    A run of one client, ``a``, whose every update is accepted; versions and states are files below ``site.state_dir``.

    Args:
        site: Its worker's.
        config: The run's.
        ask: Computes.
        run: Run id.
    """

    site: WorkerSettings
    config: RunConfig
    ask: Ask
    run: str = RUN
    manifest: Manifest | None = None
    arrays: dict[str, Any] = field(default_factory=dict)
    server: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: KeptState = field(default_factory=KeptState)
    reports: list[Progress] = field(default_factory=list)

    # What is asked for

    def initialise(self) -> Response:
        """Make version 0."""
        made = self._response(self.request(Call.initialise, 0))
        self.manifest = Manifest.from_json(made.header.manifest)
        self.arrays = {
            name: array.copy()
            for name, array in tensor_layout.views(
                self.manifest, made.body[: self.manifest.nbytes]
            ).items()
        }
        self.server = {
            name: {
                spec.name: np.zeros(spec.shape, "<f4")
                for spec in state_manifest(self.manifest).tensors
            }
            for name in self._strategy.fetched
        }
        return made

    def train(self, number: int) -> Response:
        """Train in a round; its update makes the next version."""
        made = self._response(self.request(Call.train, number))
        assert self.manifest is not None
        layouts = layouts_of(self.config, self._strategy, self.manifest)
        self._apply(made)
        if not layouts:
            return made
        place = self.site.client_states / self.run / "a" / f"{number}_{made.header.body_digest}"
        self.state = KeptState(
            place=place.relative_to(self.site.state_dir).as_posix(),
            states=tuple(layouts),
            note=f"of round {number}",
        )
        [file] = place.glob("*.safetensors")
        return replace(made, state=file.read_bytes())

    def evaluate(self, number: int) -> Response:
        """Evaluate the newest version."""
        return self._response(self.request(Call.evaluate, number))

    def score(self) -> Answer:
        """Score the newest version."""
        return self.ask(replace(self.request(Call.score, 0), client="evaluator"), print)

    def facts(self) -> Answer:
        """Report the facts."""
        return self.ask(replace(self.request(Call.facts, 0), model=None), print)

    def request(self, call: Call, number: int) -> Request:
        """A request of a round, with the newest version and client state."""
        begins = call == Call.initialise
        return Request(
            call=call,
            run=self.run,
            name="by-hand",
            config=self.config.to_dict(),
            client="a",
            round=number,
            token=f"token-{call}-{number}",
            shares=self.config.data.shares or 1,
            model=None if begins or self.manifest is None else self._model(),
            state=self.state,
        )

    # Files

    @property
    def _strategy(self) -> Any:
        return get_strategy(self.config.aggregation.strategy, self.config.strategy)

    def _response(self, request: Request) -> Response:
        answer = self.ask(request, self.reports.append)
        assert answer.outcome == "done", answer
        path = outbox.path_of(self.site.outbox, self.run, request.round, "a")
        found = outbox.read(path)
        assert found is not None
        made = Response(found[0], bytes(found[1]))
        path.unlink()
        return made

    def _model(self) -> ModelFile:
        assert self.manifest is not None
        manifest = self.manifest
        return ModelFile(
            manifest=manifest.to_json(),
            place=self._file(b"".join(self.arrays[s.name].tobytes() for s in manifest.tensors)),
            server_state={
                name: self._file(
                    b"".join(
                        arrays[spec.name].tobytes() for spec in state_manifest(manifest).tensors
                    )
                )
                for name, arrays in self.server.items()
            },
        )

    def _file(self, body: bytes) -> str:
        path = self.site.cache / self.run / tensor_layout.body_digest(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return path.relative_to(self.site.state_dir).as_posix()

    def _apply(self, made: Response) -> None:
        """The next version: the update added to the last one, the extras to the server's state."""
        assert self.manifest is not None
        sent = update_manifest(self._strategy, self.manifest)
        update = codec.LazyDecodedTensors(made.header.codec, sent, memoryview(made.body))
        for spec in self.manifest.shared().tensors:
            if spec.kind == "integer_buffer":
                self.arrays[spec.name] = np.array(update[spec.name])
            else:
                self.arrays[spec.name] = self.arrays[spec.name] + update[spec.name]
        for name, extra in zip(self.server, self._strategy.extras, strict=False):
            for spec in state_manifest(self.manifest).tensors:
                change = update[extra_name(extra, spec.name)]
                self.server[name][spec.name] = self.server[name][spec.name] + change


def settings_of(folder: Path, **changes: Any) -> WorkerSettings:
    """A worker of client ``a`` without servers."""
    values: dict[str, Any] = {"state_dir": folder, "client": "a", "min_examples": 1, "threads": 1}
    return WorkerSettings(**{**values, **changes})


def is_finite(response: Response) -> bool:
    """Whether the sums of a response are numbers to compare."""
    return all(
        math.isfinite(value)
        for value in response.header.metrics.values()
        if isinstance(value, float)
    )


#: Makes what is asked, for each request or for all.
MakeAsk = Callable[[WorkerSettings], Ask]
