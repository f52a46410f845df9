"""
Ten lines to a curve: a simulation of six clients on the shipped MNIST excerpt.

python examples/curve.py [PNG]; it starts all it needs, and stops it.
"""

import sys
import tempfile

from fl_queue import Run

SETTINGS = {"clients.kind": "simulation", "clients.count": 6, "clients.processes": 1}
SETTINGS["run.evaluate_every"] = 0  # Judged by the clients' validation: no evaluator to start.

with (
    tempfile.TemporaryDirectory() as folder,
    Run.start("mnist-3v7", rounds=3, settings=SETTINGS, state_dir=folder) as run,
):
    run.wait()
    for row in run.history():
        print(row["round"], row["version"], f"{row['accuracy']:.3f}", row["source"])
    print({name: tuple(tensor.shape) for name, tensor in run.model(best=True).items()})
    run.plot(sys.argv[1] if len(sys.argv) > 1 else "curve.png")
