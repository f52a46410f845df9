"""The operator's key of this machine, and the enrolments that it signed."""

from __future__ import annotations

from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.rounds import statement_signing
from fl_queue.errors import ConfigError
from fl_queue.protocol import operator_key
from fl_queue.reporting.doctor.finding import Finding
from fl_queue.store import Store, keyspace


def examine_operator_key(store: Store) -> list[Finding]:
    """Report a key that is missing, or that is not the key of the runs on this server."""
    try:
        trouble, is_foreign = statement_signing.key_trouble(store)
        key = store.control.enrolments.pins.key
    except ConfigError:
        return []  # Reported with the enrolments.
    if is_foreign:
        fix = "put back the key of the machine where the run was begun, or name it with --operator-key"
        return [Finding("FAIL", f"the operator's key: {trouble}", fix)]
    if trouble:
        fix = "copy it there if this machine begins runs or has an aggregator; sites and evaluators need none"
        return [Finding("WARN", f"the operator's key: {trouble}", fix)]
    return [] if key is None else [Finding("OK", f"the operator's key is {key.fingerprint}")]


def examine_enrolments(store: Store) -> list[Finding]:
    """Compare the enrolments on the server with the pins of this machine."""
    try:
        found = enrolment.troubles(store)
        checked = store.control.enrolments.pins.are_kept
    except ConfigError as exc:
        return [Finding("FAIL", f"the operator's key: {exc}", "")]
    if not checked and store.control.enrolments.entries():
        what = f"enrolments are not checked: {store.state_dir} has no {operator_key.FILE}"
        fix = "copy it there from the machine where `fl-queue enroll` runs, or run `fl-queue enroll --sign-existing`"
        return [Finding("WARN", what, fix)]
    fix = (
        "see who may write there; `fl-queue enroll --sign-existing` puts right what is pinned here"
    )
    return [
        Finding("FAIL", f"{keyspace.ENROLLED}: entry of {client}: {why}", fix)
        for client, why in found.items()
    ]
