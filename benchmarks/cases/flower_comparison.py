"""
Flower beside fl-queue, in one run: ``python -m benchmarks.cases.flower_comparison [--quick] [--data FOLDER]``.

Flower is installed in an environment of its own under ``benchmarks/.peers``; pip picks the version.
Training of the first table adds a constant to float32 parameters, nothing is evaluated, everything
goes over TCP on loopback. The second one is the simulation of the perceptron 2NN of the FedAvg paper,
beside the bare PyTorch loop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.cases import pytorch_fedavg, simulation, transfer_lower_bound
from benchmarks.harness.federation import ROOT, Federation, children
from benchmarks.harness.table import markdown, median, spread
from fl_queue.common import processes
from fl_queue.data.idx import encode_idx, read_idx

ENVIRONMENT = ROOT / "benchmarks" / ".peers"
#: Plain names: torch is found among the project's packages, see ``install``.
PACKAGES = ("flwr[simulation]", "torch")
INSTALL_S = 1200
READY_S = 90
#: A run of Flower that takes longer is given up.
RUN_S = 420
CLIENTS = 4
#: Parameters -> rounds that count.
SIZES = {200_000: 5, 1_660_000: 5, 25_000_000: 4}
SIMULATED, COHORT, ROUNDS = simulation.CLIENTS, simulation.COHORT, 50
PROCESSES = simulation.PROCESSES

#: What Flower's run config may hold, as far as this app needs it.
Value = str | int | float

PROJECT = """\
[project]
name = "flower-app"
version = "1.0.0"
description = "A round whose cost is not its training."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmarks"

[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"

[tool.flwr.app.config]
"""
CONNECTION = """\
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def install() -> str:
    """
    Make the environment, unless it is there; the version of Flower in it.

    Raises:
        subprocess.CalledProcessError: pip failed; its output has the reason.
        subprocess.TimeoutExpired: It took longer than ``INSTALL_S``.
    """
    done = ENVIRONMENT / ".installed"
    python = ENVIRONMENT / "bin" / "python"
    if not done.exists():
        print(f"Installing {', '.join(PACKAGES)} into {ENVIRONMENT} ...", flush=True)
        venv = [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)]
        subprocess.run(venv, check=True, timeout=INSTALL_S)
        where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        theirs = subprocess.run(where, check=True, capture_output=True, text=True, timeout=60)
        # What the project has, torch above all, is not downloaded again; what pip installs there
        # comes first.
        path = Path(theirs.stdout.strip()) / "fl_queue_packages.pth"
        path.write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, *PACKAGES], check=True, timeout=INSTALL_S)
        done.touch()
    ask = [str(python), "-c", "from importlib.metadata import version; print(version('flwr'))"]
    found = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60)
    return found.stdout.strip()


def free_ports(count: int) -> list[int]:
    """Different free ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def app_config(values: Mapping[str, Value]) -> str:
    """Lines of TOML for Flower's run config."""
    # JSON writes strings, integers and floats as TOML does.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def periods(stamps: list[float]) -> list[float]:
    """Seconds of each round but the first, from the beginnings of all rounds and the last one's end."""
    return [later - earlier for earlier, later in pairwise(stamps[1:])]


def below(pid: int) -> list[int]:
    """Pids of everything below a process, nearest first."""
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


@dataclass
class Flower:
    """
    A SuperLink and its SuperNodes, as processes, while it is entered.

    Args:
        nodes: SuperNodes; 0 for Flower's simulation, which needs none.
    """

    nodes: int

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="flq-peer-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        port, *ports = free_ports(1 + self.nodes)
        (self._folder / "config.toml").write_text(CONNECTION.format(port=port))
        link = ["--insecure", "--host", "127.0.0.1", "--port", str(port)]
        # Otherwise it would let uv make an environment for the app, from the network.
        link.append("--disable-runtime-dependency-installation")
        try:
            self._start("flower-superlink", *link, *([] if self.nodes else ["--simulation"]))
            self._await(port)
            for index, own in enumerate(ports):
                node = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)]
                self._start("flower-supernode", *node, "--node-config", f"partition-id={index}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Flower's processes start others, in sessions of their own; all of them are ended by id.
        started = [pid for process in self._processes for pid in (process.pid, *below(process.pid))]
        identities = {pid: processes.process_identity(pid) for pid in started}
        for process in self._processes:
            process.terminate()
        until = time.monotonic() + 10
        while time.monotonic() < until and any(_alive(name) for name in identities.values()):
            time.sleep(0.1)
        for pid, name in identities.items():
            if _alive(name):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def rounds(self, values: Mapping[str, Value], count: int, federation: str = "") -> list[float]:
        """
        Seconds of each of ``count`` rounds, after one that warms up.

        Args:
            values: Of the app's run config, see ``benchmarks.cases.flower_app``.
            federation: Options of a simulation, as ``flwr run`` takes them.

        Raises:
            RuntimeError: It did not end within ``RUN_S``, or a process died; has the end of the logs.
        """
        result = self._folder / "result.json"
        app = self._folder / "app"
        app.mkdir()
        shutil.copy(ROOT / "benchmarks/cases/flower_app.py", app)
        fixed: dict[str, Value] = {
            "rounds": count + 1,
            "timeout": float(RUN_S),
            "result": str(result),
        }
        (app / "pyproject.toml").write_text(PROJECT + app_config({**values, **fixed}))
        command = [str(ENVIRONMENT / "bin" / "flwr"), "run", str(app), "here"]
        if federation:
            command += ["--federation-config", federation]
        started = subprocess.run(
            command, env=self._environ(), capture_output=True, text=True, timeout=READY_S
        )
        if started.returncode:
            raise RuntimeError(f"flwr run: {started.stdout}{started.stderr}")
        until = time.monotonic() + RUN_S
        while not result.exists():
            if time.monotonic() > until or any(each.poll() is not None for each in self._processes):
                raise RuntimeError(f"Flower did not finish its rounds:\n{self._logs()}")
            time.sleep(0.2)
        return periods(json.loads(result.read_text()))

    def _environ(self) -> dict[str, str]:
        bin_folder = str(ENVIRONMENT / "bin")
        return {
            **os.environ,
            # Flower starts its own commands by name.
            "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self._folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self._folder),
        }

    def _start(self, command: str, *arguments: str) -> None:
        log_path = self._folder / f"{len(self._processes)}-{command}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / command), *arguments],
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)

    def _await(self, port: int) -> None:
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self._processes[0].poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the SuperLink was not ready after {READY_S} s:\n{self._logs()}")

    def _logs(self) -> str:
        parts = []
        for path in sorted(self._folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            parts.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(parts)


def _alive(identity: str) -> bool:
    return bool(identity) and not processes.is_dead(identity)


def deployed(size: int, count: int) -> list[float]:
    """Seconds of each of ``count`` rounds of ``size`` parameters in Flower's deployment."""
    values: dict[str, Value] = {
        "task": "constant",
        "parameters": size,
        "clients": CLIENTS,
        "cohort": CLIENTS,
    }
    with Flower(CLIENTS) as flower:
        return flower.rounds(values, count)


def ours(size: int, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: fl-queue's, and the floor's before and after them."""
    bare_count = max(2, count // 2)
    with Federation(CLIENTS, tcp=True) as federation:
        url = federation.redis.blob_url
        bare = transfer_lower_bound.measure(url, 4 * size, CLIENTS, bare_count)
        federation.store.data.redis.flushall()
        run = federation.begin("bench", 2 * count + 1, f"task.parameters={size}")
        found = [timing.period for timing in federation.finish(run)]
        federation.store.data.redis.flushall()
        bare += transfer_lower_bound.measure(url, 4 * size, CLIENTS, bare_count)
    return found, bare


def trivial_rounds(sizes: Mapping[int, int]) -> str:
    """The first table: whole rounds with four clients."""
    head = (
        "parameters",
        "MB",
        "floor s",
        "fl-queue s",
        "Flower s",
        "ours / floor",
        "Flower / ours",
    )
    rows = []
    for size, count in sizes.items():
        mine, bare = ours(size, count)
        theirs = deployed(size, count)
        rows.append(
            [
                f"{size / 1e6:g} M", f"{4 * size / 1e6:.1f}",
                spread(bare), spread(mine), spread(theirs, 2),
                f"{median(mine) / median(bare):.2f}", f"{median(theirs) / median(mine):.1f}",
            ]
        )  # fmt: skip
        print(markdown(head, rows[-1:]).splitlines()[-1], flush=True)
    return markdown(head, rows)


def write_random(folder: Path) -> None:
    """Files like those of MNIST in an existing folder, with random bytes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = random.integers(0, 10, count, np.uint8)
        # Uncompressed: readers detect compression by the content, not the name.
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(encode_idx(labels))


def pack_images(data: Path, path: Path) -> None:
    """
    MNIST's training images as one file of numpy's: uint8 (N, 784), and labels (N,).

    Args:
        data: Has the files of MNIST.
        path: The new file, ``.npz``.

    Raises:
        DataError: A file is missing or damaged.
    """
    images = read_idx(data / "train-images-idx3-ubyte.gz", 3)
    labels = read_idx(data / "train-labels-idx1-ubyte.gz", 1)
    np.savez(path, images=images.reshape(len(images), -1), labels=labels)


def simulated(data: Path, count: int) -> list[float]:
    """Seconds of each of ``count`` rounds in Flower's simulation, one thread an actor."""
    options = {
        "num-supernodes": SIMULATED,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": PROCESSES,
    }
    federation = " ".join(f"{name}={value}" for name, value in options.items())
    with tempfile.TemporaryDirectory(prefix="flq-peer-") as folder, Flower(0) as flower:
        images = Path(folder) / "images.npz"
        pack_images(data, images)
        values: dict[str, Value] = {"task": "digits", "clients": SIMULATED, "cohort": COHORT}
        return flower.rounds({**values, "data": str(images)}, count, federation)


def simulations(data: Path, count: int = ROUNDS) -> str:
    """
    The second table: rounds of a simulation, the bare loop's before and after the others.

    Args:
        data: Has the files of MNIST.
        count: Rounds that count.
    """
    half = count // 2
    loop = pytorch_fedavg.measure(data, SIMULATED, COHORT, half, PROCESSES)
    source = ("data.source=full", f"data.dir={data}")
    mine = [timing.period for timing in simulation.simulate(count, simulation.CONFIG, *source)]
    theirs = simulated(data, count)
    loop += pytorch_fedavg.measure(data, SIMULATED, COHORT, half, PROCESSES)
    head = ("bare PyTorch s", "fl-queue s", "Flower s", "ours / bare", "Flower / bare",
            "Flower / ours")  # fmt: skip
    row = [
        spread(loop), spread(mine), spread(theirs), f"{median(mine) / median(loop):.2f}",
        f"{median(theirs) / median(loop):.2f}", f"{median(theirs) / median(mine):.2f}",
    ]  # fmt: skip
    return markdown(head, [row])


def report(version: str, quick: bool = False, data: Path | None = None) -> str:
    """
    Both tables.

    Args:
        version: Of Flower.
        quick: The smallest model, three rounds, no simulation.
        data: Has the files of MNIST; None for random images.
    """
    about = f"Flower {version}, {CLIENTS} clients, TCP on loopback, median seconds a round."
    sizes = {min(SIZES): 3} if quick else SIZES
    parts = [about, trivial_rounds(sizes)]
    if not quick:
        parts.append(
            f"Simulation of the perceptron: {COHORT} of {SIMULATED} clients a round, one epoch, "
            f"batches of 10, {PROCESSES} processes of one thread, {ROUNDS} rounds."
        )
        with tempfile.TemporaryDirectory(prefix="flq-peer-") as folder:
            if data is None:
                write_random(Path(folder))
            parts.append(simulations(data or Path(folder)))
    return "\n\n".join(parts)


def main() -> None:
    """Install Flower when it is not there, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="0.8 MB, 3 rounds, no simulation")
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: random images")
    arguments = parser.parse_args()
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(report(install(), arguments.quick, arguments.data))


if __name__ == "__main__":
    main()
