"""
What was skipped, counted by reason in the last lines; with ``FLQ_TEST_NO_SKIPS=1`` any skip fails the session.

A reason names what the machine lacks. `.ci/run` installs all of it and sets the variable, so that a test that
stops running there fails the job.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from _pytest.terminal import TerminalReporter

FORBIDDEN = "FLQ_TEST_NO_SKIPS"


def _reasons(reporter: TerminalReporter) -> Counter[str]:
    reports = reporter.stats.get("skipped", [])
    texts = (
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        for report in reports
    )
    return Counter(text.removeprefix("Skipped: ") for text in texts)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that passed but for what it skipped, where that is forbidden."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        os.environ.get(FORBIDDEN) == "1"
        and reporter is not None
        and _reasons(reporter)
        and session.exitstatus == 0
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Name each reason and how many tests it was the reason of."""
    reasons = _reasons(terminalreporter)
    if not reasons:
        return
    forbidden = os.environ.get(FORBIDDEN) == "1"
    terminalreporter.section("skipped: an error here" if forbidden else "skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:4} skipped: {reason}")
