"""
Facts that sites report about their data before round 1, and the comparison of sites.

A fact is one line of text, the same at two sites if what it stands for is the same:
``classes: 3: cat, dog, horse``. Words that the run's config does not have stay at the site, as a column's
name or a label may be a secret of the site: they are counted, and a check number of eight bits stands for them.
So two sites that differ have equal lines once in 256 times, and an attacker that tries all possible names
learns no more than those bits, however often it asks. A whole digest would disclose the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from blake3 import blake3

from fl_queue.common.safe_json import clean, loads, printable
from fl_queue.errors import MessageError

#: Fact -> its line.
Facts = Mapping[str, str]

#: Named when they differ, and no reason to leave a site out: shapes may, and code may in a comment.
NOTED = ("input", "code")
#: Why a site could not report the rest.
PROBLEM = "problem"
#: There, with any value, when what it could not do is what training begins with: load its task and data.
CANNOT = "cannot"
#: Numbers of files and texts that are not used, or not as they are; each site has its own.
FILES = "files"
NOT_COMPARED = (PROBLEM, CANNOT, FILES)
#: Words for files and texts that are not used, or not as they are; of others, as of a task's own, nothing leaves a site.
FILE_KINDS = (
    "broken link",
    "clipped",
    "cut text",
    "hidden",
    "link out of the data folder",
    "link to a folder out of the data folder",
    "other suffix",
    "reduced",
    "refused",
    "unreadable",
)
#: Facts that a site may report, characters of a line, and bytes of all its facts.
MOST = 16
LONGEST = 1000
MAX_BYTES = 32 * 1024
_NAMED = 40
_NAME_LENGTH = 64
_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")


def listed(names: Sequence[object], known: Collection[str]) -> str:
    """
    Names in their order as a fact: how many, the first of them, and what stands for those left out.

    Args:
        known: The words that may leave the site; any other is a ``?``.
    """
    whole = [str(name) for name in names]
    if not set(whole) <= set(known):
        return _hidden(whole, known)
    shown = [printable(name)[:_NAME_LENGTH] for name in whole[:_NAMED]]
    text = f"{len(whole)}: {', '.join(shown)}"
    if shown == whole and len(text) <= LONGEST:
        return text
    digest = blake3("\0".join(whole).encode(errors="replace")).hexdigest()[:12]
    return f"{text[: LONGEST - 40]}, ... (all of them: {digest})"


def _hidden(whole: Sequence[str], known: Collection[str]) -> str:
    check = blake3("\0".join(whole).encode(errors="replace")).digest()[0]
    shown = [printable(name)[:_NAME_LENGTH] if name in known else "?" for name in whole[:_NAMED]]
    text = f"{len(whole)}: {', '.join(shown)}"
    if set(shown) == {"?"}:
        text = f"{len(whole)} that the config does not name"
    return f"{text[: LONGEST - 40]} (check {check})"


def line(text: object) -> str:
    """Any other text as a fact; what may leave the site has been decided."""
    return printable(str(text))[:LONGEST]


def word(text: str, known: Collection[str]) -> str:
    """A text that code of a site's own describes itself with."""
    return line(text) if text in known else _hidden([text], known)


def parse(text: bytes) -> dict[str, str]:
    """
    Parse facts, which any process may have written.

    Raises:
        MessageError: They are no facts, or too many.
    """
    if len(text) > MAX_BYTES:
        raise MessageError(f"no facts: more than {MAX_BYTES} bytes")
    return check(clean(loads(text, "facts"), "facts"))


def check(raw: Any) -> dict[str, str]:
    """The same of what has been read as JSON. Raises MessageError."""
    if type(raw) is not dict or len(raw) > MOST:
        raise MessageError(f"no facts: not a map of at most {MOST}")
    for key, value in raw.items():
        if not _KEY.fullmatch(key) or type(value) is not str or len(value) > LONGEST:
            raise MessageError(f"no facts: {key[:64]!r} is no name, or not a line of text")
    return raw


def agreed(reported: Mapping[str, Facts], *, always: bool = False) -> dict[str, str]:
    """
    The majority's facts: of each fact the line of more than half of the sites that report it.

    A fact without such a majority is not there, but one of ``NOTED``: of those the line of the most,
    of equals the first in alphabetical order. It depends on nothing but the reported facts.

    Args:
        always: For every fact, as for those of ``NOTED``.
    """
    found = {}
    for fact in sorted({fact for facts in reported.values() for fact in facts} - {*NOT_COMPARED}):
        counts = Counter(facts[fact] for facts in reported.values() if fact in facts)
        text, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if always or fact in NOTED or 2 * most > counts.total():
            found[fact] = text
    return found


def undecided(reported: Mapping[str, Facts]) -> str:
    """Describe the first fact on which sites differ and no value has a majority; empty when there is none."""
    reference = agreed(reported)
    for fact in sorted({fact for facts in reported.values() for fact in facts} - {*NOT_COMPARED}):
        if fact not in reference:
            sites = "; ".join(
                f"{client}: {facts[fact]}"
                for client, facts in sorted(reported.items())
                if fact in facts
            )
            return f"sites differ in {fact}, and neither side has most of them ({sites})"
    return ""


def differences(facts: Facts, reference: Facts, among: Iterable[str] | None = None) -> list[str]:
    """
    Differences of a site from most, a line each: its value, and that of most.

    Args:
        among: Of these facts only; None: of all.
    """
    wanted = (set(reference) if among is None else set(among)) - {*NOT_COMPARED}
    return [
        f"{fact} {facts[fact]}; others have {reference[fact]}"
        for fact in sorted(wanted & facts.keys() & reference.keys())
        if facts[fact] != reference[fact]
    ]


def is_fit(facts: Facts, reference: Facts) -> bool:
    """Whether a site is like most in all that decides."""
    return not differences(facts, reference, set(reference) - set(NOTED))
