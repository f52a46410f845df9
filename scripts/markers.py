"""Parts of a page that are made from the code, between two markers."""

from __future__ import annotations

import re


def replaced(page: str, begin: str, end: str, text: str) -> str:
    """Put a text between the two markers of a page; a page without them stays as it is."""
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda found: f"{begin}{text}{end}",
        page,
        flags=re.DOTALL,
    )
