"""Nothing in a trainer's environment leads to Redis; what it needs stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer.environment import of_trainers

SECRETS = {
    "FLQ_REDIS_URL": "redis://:secret@host",
    "FLQ_REDIS_BLOB_URL": "redis://:secret@host",
    "FLQ_SITE_TOKEN": "secret",
    "FLQ_SITE_CREDENTIALS": "/secret/site.toml",
    "FLQ_OPERATOR_KEY": "/secret/operator.key",
    "FLQ_WEB_TOKEN": "secret",
    "FLQ_SOMETHING_NEW": "secret",
    "CREDENTIALS_DIRECTORY": "/secret",
    "BROKER": "rediss://user:secret@host:6380",
    "CACHE": "redis+sentinel://:secret@host",
    "REDISCLI_AUTH": "secret",
    "REDIS_PASSWORD": "secret",
    "MY_REDIS_BLOB_PASS": "secret",
    "redis_auth_token": "secret",
    "SOCKET": "unix://:secret@/run/redis.sock",
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_do_not_stay(name: str) -> None:
    assert name not in of_trainers({name: SECRETS[name]}, 1)


def test_a_site_is_the_same_but_for_what_only_its_worker_needs() -> None:
    site = WorkerSettings(
        url="redis://:secret@host", blob_url="redis://:secret@host", state_dir=Path("/state"), client="a",
        data_dir="/data", allow=("own:Task", "mnist"), device="cuda:1", threads=3, worker="a_1", token="secret",
        credentials="/secret", loader_workers=2, max_examples=5, min_examples=3, min_batch=2, approve=True,
        data_from_config=True, operator_key="/secret", compiled=True,
    )  # fmt: skip
    environment = of_trainers({**site.to_environ(), "PATH": "/bin", "HOME": "/root"}, 3)
    again = WorkerSettings.from_environ(environment)

    assert "secret" not in repr(environment)
    assert environment["PATH"] == "/bin"
    different = {name for name in vars(site) if vars(site)[name] != vars(again)[name]}
    assert different == {"url", "blob_url", "token", "credentials", "operator_key"}


def test_threads_are_those_of_the_site_unless_the_user_has_set_them() -> None:
    assert of_trainers({}, 2)["OMP_NUM_THREADS"] == "2"
    assert of_trainers({"OMP_NUM_THREADS": "4"}, 2)["OMP_NUM_THREADS"] == "4"
    assert of_trainers({}, 0)["MKL_NUM_THREADS"] == "1"


def test_code_that_trainers_compile_is_kept_for_later_ones() -> None:
    compiling = WorkerSettings(state_dir=Path("/state"), compiled=True).to_environ()
    assert of_trainers(compiling, 1)["TORCHINDUCTOR_CACHE_DIR"] == "/state/compiled"
    assert of_trainers(compiling | {"TORCHINDUCTOR_CACHE_DIR": "/fast"}, 1)["TORCHINDUCTOR_CACHE_DIR"] == "/fast"  # fmt: skip
    assert "TORCHINDUCTOR_CACHE_DIR" not in of_trainers({"FLQ_SITE_STATE_DIR": "/state"}, 1)
