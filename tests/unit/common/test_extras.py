"""The advice for a missing extra works, and no message gives advice that does not."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_queue.common import extras
from scripts import oldest
from tests.support.checkout import ROOT


def came_from(monkeypatch: pytest.MonkeyPatch, noted: str | None) -> None:
    made = SimpleNamespace(read_text=lambda file: noted)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: made)


def test_the_checkout_it_was_installed_from_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    came_from(monkeypatch, f'{{"url": "file://{tmp_path}", "dir_info": {{"editable": true}}}}')

    assert extras.how_to_install("web") == f'run `pip install "{tmp_path}[web]"`'


@pytest.mark.parametrize(
    "noted",
    [None, "", "{", '{"url": "file:///gone/x.whl"}', '{"url": "https://example.org/x.whl"}', "[]"],
)
def test_where_it_came_from_may_not_be_known(
    monkeypatch: pytest.MonkeyPatch, noted: str | None
) -> None:
    came_from(monkeypatch, noted)

    assert extras.how_to_install("web") == (
        'run `pip install "PATH[web]"`, where PATH is the checkout or the wheel of fl-queue'
    )


def test_nothing_advises_what_no_index_has() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\n") if name]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        if path.is_file() and path != Path(__file__)
        for match in re.finditer(
            r"""pip3? install [^`\n]*["']fl-queue\[""", path.read_text(errors="replace")
        )
    ]

    assert len(files) > 100
    assert found == []


def test_the_oldest_packages_are_those_of_the_bounds() -> None:
    setup = ConfigParser()
    setup.read_string("""
[options]
install_requires =
    redis >= 6.4
    rq >= 3.0, < 4
[options.extras_require]
embedded =
    # A comment.
    served >= 9.1.2; platform_machine == "x86_64"
test =
    fl-queue[embedded]
    six >= 1.16
""")

    assert oldest.constraints(setup, ["embedded"]) == ["redis==6.4", "rq==3.0", "served==9.1.2"]
