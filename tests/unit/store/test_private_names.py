"""
Names of redis-py and RQ that are not public, and that fl-queue uses: setup.cfg has an upper bound for both.

A release without one of them fails here first, by name.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import redis
import redis._parsers
import redis.connection
import redis.sentinel
import rq.intermediate_queue
import rq.job
import rq.queue
from redis.client import Pipeline

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("owner", "name", "used_by"),
    [
        (redis._parsers, "Encoder", "store/connection.py"),
        (redis.connection, "PythonRespSerializer", "store/connection.py"),
        (redis.connection.SSLConnection, "_wrap_socket_with_ssl", "store/tls.py"),
        (rq.intermediate_queue.IntermediateQueue, "get_intermediate_queue_key", "rq_cleanup.py"),
        (rq.queue.Queue, "enqueue_call", "store/jobs/dispatch.py"),
        (rq.job.Job, "key_for", "store/jobs/dispatch.py"),
    ],
)
def test_a_class_has_the_name(owner: object, name: str, used_by: str) -> None:
    assert hasattr(owner, name), f"{owner} has no {name}, which {used_by} uses"


def test_a_pipeline_has_its_commands_and_whether_it_watches() -> None:
    pipe = Pipeline(redis.ConnectionPool(), {}, True, None)
    pipe.multi()
    pipe.set("key", "value")

    assert [words for words, _ in pipe.command_stack] == [("SET", "key", "value")]
    assert (pipe.watching, pipe.explicit_transaction) == (False, True)


def test_a_connection_has_a_socket_field() -> None:
    assert redis.Connection()._sock is None


def test_commands_are_packed_as_redis_py_packs_them() -> None:
    parameters = inspect.signature(redis.connection.PythonRespSerializer.__init__).parameters

    assert [*parameters][1:] == ["buffer_cutoff", "encode"]


@pytest.mark.parametrize("package", ["redis", "rq"])
def test_the_next_major_release_is_not_installed_untried(package: str) -> None:
    text = (ROOT / "setup.cfg").read_text()

    assert re.search(rf"^    {package} >= [\d.]+, < \d+$", text, re.MULTILINE)
