"""docker-compose.yml and the Dockerfile, as far as they can be checked without Docker."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.support.checkout import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REDIS = ("redis-control", "redis-data")
OURS = sorted(set(SERVICES) - set(REDIS))
CLIENTS = [name for name in OURS if "client" in SERVICES[name]["command"]]


def option(service: str, name: str) -> str:
    """The value after ``--name`` in a service's command."""
    command = SERVICES[service]["command"]
    return str(command[command.index(f"--{name}") + 1])


def mounts(service: str) -> dict[str, str]:
    """Folder in the container -> what is mounted there."""
    found = {}
    for mount in SERVICES[service].get("volumes", []):
        source, target, *_ = mount.split(":")
        found[target] = source
    return found


def on_host(service: str, argument: str, data: Path) -> str:
    """An argument as it would read on this machine: ``/config`` is here, ``/data`` is ``data``."""
    for target, source in mounts(service).items():
        if argument == target or argument.startswith(f"{target}/"):
            folder = data if target == "/data" else ROOT / source
            return f"{folder}{argument.removeprefix(target)}"
    return argument


def parse(group: click.Group, arguments: list[str]) -> click.Context:
    """Parse a command line as click does, down to its last command, and run nothing."""
    command: click.Command = group
    context: click.Context | None = None
    name: str | None = "fl-queue"
    while True:
        context = command.make_context(name, arguments, parent=context)
        if not isinstance(command, click.Group):
            return context
        # Where click keeps the rest of the line between parsing a group and invoking it.
        rest = [*context._protected_args, *context.args]
        name, found, arguments = command.resolve_command(context, rest)
        assert found is not None
        command = found


def test_control_fsyncs_every_write_and_data_writes_nothing() -> None:
    assert option("redis-control", "appendonly") == "yes"
    assert option("redis-control", "appendfsync") == "always"
    # A snapshot that fails would stop all writes.
    assert option("redis-control", "save") == ""
    assert mounts("redis-control") == {"/data": "redis-control"}
    assert option("redis-data", "appendonly") == "no"
    assert option("redis-data", "save") == ""


@pytest.mark.parametrize("service", REDIS)
def test_redis_never_evicts_and_has_a_health_check(service: str) -> None:
    assert option(service, "maxmemory-policy") == "noeviction"
    assert "redis-cli ping" in SERVICES[service]["healthcheck"]["test"][1]
    assert "ports" not in SERVICES[service]


@pytest.mark.parametrize("service", OURS)
def test_our_services_wait_for_both_servers_and_know_their_urls(service: str) -> None:
    spec = SERVICES[service]
    assert spec["depends_on"] == {name: {"condition": "service_healthy"} for name in REDIS}
    assert spec["environment"] == {
        "FLQ_REDIS_URL": "redis://redis-control:6379/0",
        "FLQ_REDIS_BLOB_URL": "redis://redis-data:6379/0",
    }
    assert spec["init"] is True


@pytest.mark.parametrize("service", OURS)
def test_url_variables_are_fields_of_the_config(service: str) -> None:
    from fl_queue.config import loading

    loaded = loading.load(None, environ=SERVICES[service]["environment"])

    assert loaded.redis.url == "redis://redis-control:6379/0"
    assert loaded.redis.blob_url == "redis://redis-data:6379/0"


@pytest.mark.parametrize("service", OURS)
def test_a_job_may_finish_before_the_container_is_killed(service: str) -> None:

    from fl_queue.config import loading

    minutes = re.fullmatch(r"(\d+)m", SERVICES[service]["stop_grace_period"])
    assert minutes
    assert int(minutes[1]) * 60 > loading.load(None, environ={}).train.timeout_s


def test_each_client_alone_has_its_data_and_its_state() -> None:
    assert CLIENTS == ["hospital-a", "hospital-b"]
    for service in CLIENTS:
        assert option(service, "client") == service
        assert option(service, "data") == "/data"
        assert f"./data/{service}:/data:ro" in SERVICES[service]["volumes"]
    states = [
        source for name in OURS for target, source in mounts(name).items() if target == "/state"
    ]
    assert len(states) == len(set(states)) == 4
    assert set(states) | {"redis-control"} == set(COMPOSE["volumes"])


def test_only_the_coordinator_waits_to_be_asked() -> None:
    asked = {name for name in OURS if SERVICES[name].get("profiles")}

    assert asked == {"coordinator"}
    assert SERVICES["coordinator"]["restart"] == "no"
    assert {SERVICES[name]["restart"] for name in OURS if name != "coordinator"} == {
        "unless-stopped"
    }


@pytest.mark.parametrize("service", OURS)
def test_every_command_is_one_of_the_command_line(service: str, tmp_path: Path) -> None:
    from fl_queue.cli import cli

    arguments = [on_host(service, part, tmp_path) for part in SERVICES[service]["command"]]

    with parse(cli, arguments) as context:
        assert context.command_path.split()[0] == "fl-queue"


def test_a_command_that_does_not_exist_is_noticed() -> None:
    from fl_queue.cli import cli

    with pytest.raises(click.UsageError):
        parse(cli, ["worker", "client", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(cli, ["no-such-command"])


def test_config_of_the_coordinator_is_shipped() -> None:
    given = SERVICES["coordinator"]["command"][1]

    assert Path(on_host("coordinator", given, ROOT)).is_file()


def test_image_installs_extras_there_are_and_copies_what_the_package_reads() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    extras = re.search(r'pip install --no-cache-dir "/src\[([a-z,]+)\]"', dockerfile)

    assert extras
    assert set(extras[1].split(",")) <= set(setup["options.extras_require"])
    assert "test" not in extras[1].split(",")
    folders = {name.split(".")[0] for name in setup["options"]["packages"].split()} | {"config"}
    for needed in {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", *folders}:
        assert f"!{needed}" in sent


def test_image_runs_as_an_ordinary_user_on_a_state_volume() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()

    assert "USER flq" in lines
    assert "ENV FLQ_STATE_DIR=/state" in lines
    assert "VOLUME /state" in lines
    assert 'ENTRYPOINT ["fl-queue"]' in lines
    assert lines.index("USER flq") > next(
        i for i, line in enumerate(lines) if "pip install" in line
    )


def test_a_site_has_its_credentials_as_a_secret_file_and_nothing_it_does_not_need() -> None:
    from fl_queue.cli import cli

    site = yaml.safe_load((ROOT / "docker-compose.site.yml").read_text(encoding="utf-8"))
    client = site["services"]["client"]
    command = client["command"]

    assert "environment" not in client
    assert command[command.index("--credentials") + 1] == "/run/secrets/site.toml"
    assert client["secrets"] == [{"source": "credentials", "target": "site.toml"}]
    assert site["secrets"] == {"credentials": {"file": "./site.toml"}}
    assert client["cap_drop"] == ["ALL"]
    assert client["security_opt"] == ["no-new-privileges:true"]
    assert client["read_only"] is True
    with parse(cli, [part.replace("/data", str(ROOT)) for part in command]) as context:
        assert context.command_path == "fl-queue worker client"


@pytest.mark.parametrize("service", OURS)
def test_no_service_of_ours_has_rights_it_does_not_need(service: str) -> None:
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]
