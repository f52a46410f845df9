"""All checks in order."""

from __future__ import annotations

from pathlib import Path

from fl_queue.errors import StoreUnavailable
from fl_queue.reporting.doctor import clients, entries, keys, servers, site_data
from fl_queue.reporting.doctor.finding import Finding, not_usable
from fl_queue.store import INTERACTIVE, Store, resolve_urls

#: Checks that need the control server.
_CHECKS = (
    clients.examine_workers,
    clients.examine_queues,
    keys.examine_operator_key,
    keys.examine_enrolments,
    entries.many_keys,
    entries.unreadable,
)


def examine(
    url: str, blob_url: str, state_dir: Path, data: Path | None, operator_key: Path | None = None
) -> list[Finding]:
    """
    Check the data folder, both Redis servers, the workers and the keys.

    A server that cannot be used is a finding, not an error; the other one is checked as well.

    Args:
        url: Control server.
        blob_url: Data server; empty: the control server.
        state_dir: Folder of this machine's state.
        data: Data folder of the site; None: not checked.
        operator_key: File of the operator's key; None: its default place.
    """
    findings = [site_data.examine_folder(data)] if data is not None else []
    try:
        both = resolve_urls(url, blob_url, state_dir)
        store = Store(
            *both,
            timeouts=INTERACTIVE,
            needs_data=False,
            state_dir=state_dir,
            operator_key=operator_key,
        )
    except StoreUnavailable as exc:
        return [*findings, not_usable(str(exc), exc)]
    connected = store.servers
    findings += servers.exposed([url, blob_url])
    findings += [*servers.sentinels("control", url), *servers.sentinels("data", blob_url or url)]
    control = servers.examine("control", connected.control, connected.url)
    # One server for both roles is checked once, as the control server, which has more checks.
    other = (
        []
        if connected.url == connected.blob_url
        else servers.examine("data", connected.data, connected.blob_url)
    )
    findings += control + other
    if any(finding.trouble for finding in control):
        return findings  # Leases are renewed there, so living workers are unknown.
    try:
        for check in _CHECKS:
            findings += check(store)
    except StoreUnavailable as exc:
        findings.append(not_usable(f"control server: {exc}", exc))
    return findings
