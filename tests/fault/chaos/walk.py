"""
The walk itself: a federation, and a run that is hit step by step, mended, and led to its end.

Nothing but what this process has started is signalled. What must hold afterwards is in
``checks``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fl_queue.coordinator.rounds.runs import describe_state
from fl_queue.store import keyspace
from fl_queue.store.embedded import redis_server
from fl_queue.store.embedded.redis_server import Role
from tests.fault.chaos import hits
from tests.fault.chaos.arena import AGGREGATORS, END_S, SETTLE_S, Arena
from tests.fault.chaos.hits import Hit
from tests.fault.chaos.plan import Step, start_kills, steps
from tests.fault.chaos.send import elements
from tests.fault.chaos.watch import AWAY, Watcher
from tests.support.federation import wait_for

NAME = "chaos"
#: Rounds of each ``start-round``.
ROUNDS_A_START = 6
#: Longest wait for a step's moment, and for a victim that is being restarted.
AIM_S = 3.0
VICTIM_S = 1.0
LOOK_S = 0.01
#: After an outage a console may report that Redis was not reachable (exit status 5).
OUTAGE_FELT_S = 60.0


@dataclass
class Outcome:
    """
    What a chaos run found.

    Args:
        mode: The run's ``round.mode``.
        failures: One line for each thing that should not be; empty when all is well.
        hits: In the order they fell.
        sent: Kind -> elements pushed by the walk.
        rejected: Verdict -> elements the run has rejected.
        versions: Newest version.
        missed: Steps that found no victim.
        events: Last events of the run.
        folder: Logs and state.
    """

    seed: int
    folder: Path
    mode: str = "sync"
    failures: list[str] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    versions: int = 0
    missed: int = 0
    events: list[str] = field(default_factory=list)


def print_progress(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


class Walk:
    """
    One disturbed run, from its first ``start-round`` to its end.

    Args:
        arena: Living.
        seed: Of the steps.
        preset, chosen: The config, and its overrides.
    """

    def __init__(
        self,
        arena: Arena,
        outcome: Outcome,
        preset: str,
        chosen: tuple[str, ...],
    ) -> None:
        self.arena, self.outcome = arena, outcome
        self.preset, self.chosen = preset, chosen
        self.watch = Watcher(arena.redis, NAME, arena.clients, outcome.mode == "async")
        self.began = time.monotonic()
        self.walking = True
        self.ended = False
        self.console: _Console | None = None
        self.starts = 0
        self._start_kills = start_kills(outcome.seed)
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._outage_at = -OUTAGE_FELT_S

    def run(self, minutes: float) -> None:
        """Walk for so long, then mend everything and wait for the run's end."""
        until = self.began + 60 * minutes
        for step in steps(self.outcome.seed):
            if not self._wait(step.wait_s, until) or self._is_lost():
                break
            self._take(step)
        self.walking = False
        self._print_line("the walk is over: mending, and waiting for the run to end")
        self._mend()
        self._await_end()

    def stop(self) -> None:
        """Wake and restart what still waits for it, and end the console."""
        self.walking = False
        self._mend()
        if self.console is not None:
            self.console.process.kill()
            self.console.process.wait()

    def _mend(self) -> None:
        while self._due:
            self._due.pop(0)[1]()

    # Time

    def _wait(self, seconds: float, until: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if time.monotonic() > until:
                return False
            self.pump()
        return True

    def pump(self) -> None:
        """Look once, and do what is due: wake, restart, replace the console."""
        now = time.monotonic()
        for due in [due for due in self._due if due[0] <= now]:
            self._due.remove(due)
            due[1]()
        for sign in self.watch.look():
            for hit in self.outcome.hits:
                hit.take(sign)
        self._mind_supervisors()
        self._mind_console()
        time.sleep(LOOK_S)

    def _is_lost(self) -> bool:
        return self.watch.run is not None and self.watch.run.state == "failed"

    def _await_end(self) -> None:
        until = time.monotonic() + END_S
        while self.watch.active or self.console is not None or not self.watch.fresh:
            if time.monotonic() > until:
                state = self.watch.run
                doing = describe_state(self.arena.store, state) if state else "was never created"
                self._fail(f"the run did not end within {END_S:g} s; it {doing}")
                return
            self.pump()
        self.ended = True
        self._print_line("the run has ended")
        until = time.monotonic() + SETTLE_S
        while self._unrecovered() and time.monotonic() < until:
            self.pump()
        for hit in self._unrecovered():
            self._fail(f"never recovered: {hit.describe()}")

    def _unrecovered(self) -> list[Hit]:
        # There is no work left: the run has ended.
        return [hit for hit in self.outcome.hits if hit.waiting and not hit.is_shown_by_work_alone]

    # Hitting

    def _take(self, step: Step) -> None:
        name = self._name(step)
        self._aim(step, name)
        if step.send:
            self._send(step)
        if step.part == "server":
            self._strike_server(step)
        elif step.role == "console":
            self._strike_console(step.action, step.pause_s, "")
        else:
            self._strike(step, name)

    def _name(self, step: Step) -> str:
        instances = {"client": self.arena.clients, "aggregator": list(AGGREGATORS)}
        choice = instances.get(step.role, [step.role])
        return choice[int(step.which * len(choice))]

    def _aim(self, step: Step, name: str) -> None:
        until = time.monotonic() + AIM_S
        while step.aim != "now" and time.monotonic() < until:
            self.pump()
            if step.aim == "pushing" and step.part == "server":
                if self.watch.pushing():
                    return
            elif self.watch.moment(step.role, name) == step.aim:
                return

    def _strike(self, step: Step, name: str) -> None:
        until = time.monotonic() + VICTIM_S
        opened, worker = self.arena.open(name, step.part)
        while not opened and time.monotonic() < until:
            self.pump()
            opened, worker = self.arena.open(name, step.part)
        if not opened:
            self.outcome.missed += 1
            return
        moment = self.watch.moment(step.role, name)
        if step.part not in hits.WORKING and worker not in self.watch.holders:
            moment = "starting"
        who = name if step.role == "client" else step.role
        if (step.role, step.part) == ("aggregator", "supervisor"):
            who = "healer"
        hit = Hit(step.role, step.part, step.action, name, who, moment, pid=worker)
        self._note(hit)
        if step.action == "stop":
            hits.send(opened, signal.SIGSTOP)
            self._later(step.pause_s, lambda: self._wake(hit, opened))
            return
        hits.send(opened, signal.SIGKILL)
        hit.over_at = time.time()
        _close(opened)
        if step.part == "supervisor":
            self.arena.processes[name].wait()
            self.arena.start(name)

    def _wake(self, hit: Hit, opened: list[int]) -> None:
        hit.over_at = time.time()
        hits.send(opened, signal.SIGCONT)
        _close(opened)

    def _strike_server(self, step: Step) -> None:
        role = cast(Role, step.role)
        if role in self.watch.away:
            self.outcome.missed += 1
            return
        hit = Hit(role, "server", step.action, role, role, self.watch.moment(role, role))
        self._note(hit)
        self.watch.away.add(role)
        if step.action == "kill":
            self.arena.redis.kill(role)
            self._later(step.pause_s, lambda: self._restore(hit, role, None))
            return
        descriptor = os.pidfd_open(self.arena.redis.pids[role])
        hits.send([descriptor], signal.SIGSTOP)
        self._later(step.pause_s, lambda: self._restore(hit, role, descriptor))

    def _restore(self, hit: Hit, role: Role, descriptor: int | None) -> None:
        if descriptor is None:
            self.arena.redis.restart(role)
        else:
            hits.send([descriptor], signal.SIGCONT)
            os.close(descriptor)
        url = self.arena.redis.url if role == "control" else self.arena.redis.blob_url
        wait_for(f"the {role} server", lambda: redis_server.answers(url))
        hit.over_at = time.time()
        self._outage_at = time.monotonic()
        self.watch.away.discard(role)

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, repair))

    def _mind_supervisors(self) -> None:
        for name, process in self.arena.processes.items():
            status = process.poll()
            if status is None:
                continue
            # Started during an outage, it exits with status 5; a service manager would
            # start it again.
            if status != 5:
                self._fail(f"the supervisor of {name} ended by itself with status {status}")
            if "control" not in self.watch.away:
                self.arena.start(name)

    # The console: start-round --wait, or watch in the place of one that was killed

    def _mind_console(self) -> None:
        console = self.console
        if console is not None:
            if not console.killed and console.has_spoken():
                console.recover()
            if console.process.poll() is None:
                return
            self._end_console(console)
        if not self.watch.fresh or self.watch.away:
            return
        if self.watch.active:
            self._begin_console("watch", NAME)
        elif self.walking and not self._is_lost():
            self.starts += 1
            options = [option for one in self.chosen for option in ("--set", one)]
            rounds_ = ["--rounds", str(ROUNDS_A_START)]
            self._begin_console(
                "start-round", self.preset, "--run", NAME, "--wait", *rounds_, *options
            )
            kill_after_s = next(self._start_kills)
            if kill_after_s is not None:
                started = self.console
                self._later(kill_after_s, lambda: self._kill_start(started))

    def _kill_start(self, started: _Console | None) -> None:
        if self.console is started and self.walking:
            self._strike_console("kill", 0.0, "starting a run")

    def _begin_console(self, *command: str) -> None:
        waiting = [hit for hit in self.outcome.hits if hit.role == "console" and hit.waiting]
        log = self.arena.folder / f"console-{time.monotonic() - self.began:07.2f}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "fl_queue", *command, "--state-dir", self.arena.redis.state_dir],
                stdout=file,
                stderr=file,
            )  # fmt: skip
        self.console = _Console(process, command[0], log, waiting)

    def _end_console(self, console: _Console) -> None:
        self.console = None
        status = console.process.returncode
        outage = time.monotonic() - self._outage_at < OUTAGE_FELT_S or self.watch.away
        if not console.killed and status != 0 and not (status == 5 and outage):
            words = console.log.read_text(errors="replace").strip().splitlines()[-3:]
            self._fail(f"{console.command} ended with status {status}: {' | '.join(words)}")
        if not console.killed or not self.walking:
            console.recover()

    def _strike_console(self, action: str, pause_s: float, moment: str) -> None:
        console = self.console
        if console is None or console.process.poll() is not None:
            self.outcome.missed += 1
            return
        moment = moment or self.watch.moment("console", "")
        hit = Hit("console", console.command, action, NAME, "console", moment)
        self._note(hit)
        console.hits.append(hit)
        if action == "kill":
            console.killed = True
            console.process.kill()
            console.process.wait()
            hit.over_at = time.time()
            return
        console.process.send_signal(signal.SIGSTOP)
        self._later(pause_s, lambda: self._wake_console(hit, console))

    def _wake_console(self, hit: Hit, console: _Console) -> None:
        console.spoke_bytes = console.log.stat().st_size
        hit.over_at = time.time()
        console.process.send_signal(signal.SIGCONT)

    # Sending

    def _send(self, step: Step) -> None:
        state = self.watch.run
        if state is None or not self.watch.active or "data" in self.watch.away:
            return
        try:
            choice = elements(step, self.watch, state)
            if not choice:
                return
            element = choice[int(step.pick * len(choice))]
            self.watch.data.rpush(keyspace.results(state.run_id), element)
        except AWAY:
            return
        self.outcome.sent[step.send] += 1

    # Progress

    def _note(self, hit: Hit) -> None:
        self.outcome.hits.append(hit)
        self._print_line(hit.describe())

    def _fail(self, line: str) -> None:
        self.outcome.failures.append(line)
        self._print_line(f"FAILED: {line}")

    def _print_line(self, line: str) -> None:
        number = self.watch.run.round if self.watch.run else "-"
        print_progress(f"{time.monotonic() - self.began:6.1f} s  round {number}: {line}")


@dataclass
class _Console:
    """
    A CLI process in a user's place.

    Args:
        hits: Those that are over when it prints a line.
        spoke_bytes: Length of its earlier output.
    """

    process: subprocess.Popen[bytes]
    command: str
    log: Path
    hits: list[Hit]
    killed: bool = False
    spoke_bytes: int = 0

    def has_spoken(self) -> bool:
        """Whether it has written a line since the last hit."""
        return self.log.stat().st_size > self.spoke_bytes

    def recover(self) -> None:
        """Its hits, and those of the ones before it, are felt no more."""
        for hit in self.hits:
            if hit.waiting:
                hit.recovered_s = time.time() - (hit.over_at or 0)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
