"""
Which samples a task splits over clients: their labels and owners, for ``fl-queue partition``.

Run as a process of its own (``python -m fl_queue.tasks.partition_labels OUT``, the config as JSON on standard
input), since tasks import torch and the command line does not. It reads the data as a client does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import own_code
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task

Found = tuple[NDArray[np.int64], NDArray[Any] | None]


class _Asked(Exception):
    """Ends ``client_data`` where it asks for the client's share."""


def labels_of(config: RunConfig, data_dir: str) -> Found:
    """
    Labels and owners that the task hands to ``Task.split``: labels (N,), and owners (N,) or None.

    Raises:
        ConfigError: The task cannot be loaded, or asks for no share.
        DataError: The data are missing or damaged.
    """
    name = config.run.task
    # Allowed, as the user of this machine has named it, and not Redis.
    data_dir = data_dir or config.data.dir
    task = load_task(name, config, own_code(name, config.task), data_dir)
    found: list[Found] = []

    def asked(
        labels: NDArray[np.int64], context: ClientContext, owners: NDArray[Any] | None = None
    ) -> NoReturn:
        found.append((labels, owners))
        raise _Asked

    task.split = asked  # type: ignore[method-assign]
    try:
        no_client = "nobody"  # codespell:ignore nobody
        task.client_data(
            ClientContext.of(config, client=no_client, run="", round_number=1, data_dir=data_dir)
        )
    except _Asked:
        return found[0]
    raise ConfigError(
        "run.task", f"client_data of {name} does not call self.split, so it splits nothing"
    )


def main() -> None:
    """Write what is found to the file that is named, as npz; or the error, as JSON."""
    out, given = Path(sys.argv[1]), json.load(sys.stdin)
    try:
        labels, owners = labels_of(RunConfig.from_dict(given["config"]), given["data_dir"])
    except ConfigError as exc:
        out.write_text(json.dumps({"kind": "config", "about": [exc.field, exc.reason]}))
        sys.exit(exc.exit_code)
    except DataError as exc:
        out.write_text(json.dumps({"kind": "data", "about": [exc.path, exc.reason]}))
        sys.exit(exc.exit_code)
    arrays = {"labels": labels} if owners is None else {"labels": labels, "owners": owners}
    with out.open("wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    main()
