"""Describe events of a run in one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fl_queue.coordinator.rounds import eligibility, runs
from fl_queue.protocol.records import Purpose
from fl_queue.reporting import purposes
from fl_queue.reporting.metric_lines import describe_metrics as describe_metrics

Event = Mapping[str, Any]
#: Composes what an event lacks and the state of the run has, such as the number of updates.
Details = Callable[[], str]


def describe(event: Event, details: Details = lambda: "") -> str:
    """Describe an event of a run's stream in one line; empty for an event that is not shown."""
    compose = _LINES.get(event["event"])
    if compose is None:
        return ""
    try:
        return compose(event, details)
    except (AttributeError, KeyError, TypeError, ValueError):
        # A malformed event in Redis must not end a page or a command.
        return f"{event['event'].replace('_', ' ')} (an event that cannot be read)"


def _reason(event: Event) -> str:
    return f": {event['reason']}" if event.get("reason") else ""


def _round_opened(event: Event, details: Details) -> str:
    cohort = ", ".join(event["cohort"][:8]) + (", ..." if len(event["cohort"]) > 8 else "")
    if event.get("clients", 0) > len(event["cohort"]):
        cohort = f"of {event['clients']}: {cohort}"
    purpose = event["purpose"]
    what = purposes.in_words(purpose, f"round {event['round']} opened")
    what += " on" if purpose == Purpose.initialise else ", cohort"
    on = f" ({len(event['carried'])} at work since before)" if event.get("carried") else ""
    return f"{what} {cohort}{on}"


def _clients_joined(event: Event, details: Details) -> str:
    return f"round {event.get('round')}: {', '.join(event['clients'])} began to train"


def _update_received(event: Event, details: Details) -> str:
    return f"round {event.get('round')}: update of {event['client']} is in{details()}{_left_out(event)}"


def _left_out(event: Event) -> str:
    return f"; {event['reason']}" if event.get("reason") else ""


def _update_rejected(event: Event, details: Details) -> str:
    line = f"round {event.get('round')}: update of {event['client']} is {event['status']}"
    return f"{line}{_reason(event)}"


def _updates_refused(event: Event, details: Details) -> str:
    line = f"round {event.get('round')}: {event['count']:,} elements of {event['client']} refused"
    return f"{line}{_reason(event)}"


def _stage_begun(event: Event, details: Details) -> str:
    without = event.get("without") or ()
    left = (
        f"; without {', '.join(without[:8])}{', ...' if len(without) > 8 else ''}"
        if without
        else ""
    )
    return f"round {event.get('round')}: stage {event['stage']}, {event['clients']} clients{left}"


def _round_committed(event: Event, details: Details) -> str:
    line = f"round {event.get('round')} committed version {event['version']}"
    return f"{line}{_reason(event)}{details()}"


def _round_ended(event: Event, details: Details) -> str:
    outcome = event["event"].removeprefix("round_")
    return f"round {event.get('round')} {outcome}{_reason(event)}{details()}"


def _version_evaluated(event: Event, details: Details) -> str:
    return f"version {event['version']}: test {event['state']}{details()}"


def _site_differs(event: Event, details: Details) -> str:
    return f"preflight: {event['client']}: {event['what']}"


def _healed(event: Event, details: Details) -> str:
    return f"round {event.get('round')} healed: {event['what']}"


def _maker_asked(event: Event, details: Details) -> str:
    return f"version 0: {event['client']} is asked, too{_reason(event)}"


def _clients_left_out(event: Event, details: Details) -> str:
    return f"left out: {'; '.join(eligibility.lines(event['left_out'])) or 'no client any more'}"


def _checkpoint_failed(event: Event, details: Details) -> str:
    return f"round {event.get('round')} cannot write its checkpoint{_reason(event)}"


def _run_created(event: Event, details: Details) -> str:
    return f"run created, {event.get('rounds')} rounds wanted{_reason(event)}"


def _run_continued(event: Event, details: Details) -> str:
    fields = event.get("changed") or ()
    changed = f"; with other settings: {', '.join(fields)}" if fields else ""
    return f"run continued, {event.get('rounds')} more rounds wanted{changed}{_reason(event)}"


def _round_restored(event: Event, details: Details) -> str:
    return f"version {event['version']} is version {event['of']} again{_reason(event)}"


def _version_tagged(event: Event, details: Details) -> str:
    return f"version {event['version']} has the tag {event['name']}"


def _version_untagged(event: Event, details: Details) -> str:
    return f"version {event['version']} has no longer the tag {event['name']}"


def _evaluation_skipped(event: Event, details: Details) -> str:
    why = str(event.get("reason") or "").removeprefix("no closing evaluation: ")
    return f"version {event.get('version')} has no closing evaluation{f': {why}' if why else ''}"


def _plain(text: str) -> Callable[[Event, Details], str]:
    return lambda event, details: f"{text}{_reason(event)}"


def _at_version(text: str) -> Callable[[Event, Details], str]:
    return lambda event, details: f"{text} {runs.at_version(event.get('version'))}{_reason(event)}"


#: Event -> composes its line. Events that are not here are not shown.
_LINES: Mapping[str, Callable[[Event, Details], str]] = {
    "round_opened": _round_opened,
    "clients_joined": _clients_joined,
    "update_received": _update_received,
    "update_rejected": _update_rejected,
    "updates_refused": _updates_refused,
    "stage_begun": _stage_begun,
    "round_committed": _round_committed,
    "round_abandoned": _round_ended,
    "round_evaluated": _round_ended,
    "round_cancelled": _round_ended,
    "round_initialised": _plain("version 0 is there"),
    "version_evaluated": _version_evaluated,
    "version_tagged": _version_tagged,
    "version_untagged": _version_untagged,
    "round_restored": _round_restored,
    "evaluation_skipped": _evaluation_skipped,
    "site_differs": _site_differs,
    "healed": _healed,
    "maker_asked": _maker_asked,
    "clients_left_out": _clients_left_out,
    "checkpoint_failed": _checkpoint_failed,
    "waiting_for_clients": _plain("waiting"),
    "run_created": _run_created,
    "run_continued": _run_continued,
    "run_failed": _plain("run failed"),
    "run_completed": _at_version("run completed"),
    "run_cancelled": _plain("run cancelled"),
    "run_restored": _at_version("run restored from a backup,"),
    "run_resumed": _at_version("run resumed"),
}
