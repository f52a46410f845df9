"""
Instructions that install optional packages.

No index has fl-queue, so `pip install fl-queue[...]` would find nothing, or a stranger's package of
that name: extras are installed from the checkout or the wheel that fl-queue itself came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Stands for the checkout or wheel, where it is not known.
ANYWHERE = "PATH"


def how_to_install(extra: str) -> str:
    """Describe the installation of an extra, as the end of a sentence that names the missing package."""
    source = _source()
    where = "" if source else f", where {ANYWHERE} is the checkout or the wheel of fl-queue"
    return f'run `pip install "{source or ANYWHERE}[{extra}]"`{where}'


def _source() -> str:
    """The checkout or wheel that this installation came from, if it is still there; else empty."""
    import importlib.metadata  # Here, as it imports e-mail: 20 ms of each command that never needs it.

    try:
        noted = importlib.metadata.distribution("fl-queue").read_text("direct_url.json")
        url = urlsplit(json.loads(noted)["url"]) if noted else None
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""
    if url is None or url.scheme != "file" or not Path(unquote(url.path)).exists():
        return ""
    return unquote(url.path)
