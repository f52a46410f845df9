"""The tables of keys in ``docs/reference/redis.md``, made from ``store.key_table``."""

from __future__ import annotations

from fl_queue.store import key_table
from fl_queue.store.key_table import Server
from scripts import markers

END = "<!-- end of keys -->"


def replaced(page: str) -> str:
    """Put the tables of both servers in place of the ones that a page has."""
    for server in ("control", "data"):
        page = markers.replaced(page, f"<!-- keys: {server} -->\n", END, f"{_table(server)}\n")
    return page


def _table(server: Server) -> str:
    lines = ["| key | type | holds | written by | kept |", "|---|---|---|---|---|"]
    for key in key_table.on(server):
        kind = f"{key.kind}, expires" if key.expires else key.kind
        lines.append(f"| `{key.pattern}` | {kind} | {key.holds} | {key.writers} | {key.lifetime} |")
    return "\n".join(lines)
