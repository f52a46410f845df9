"""
Sums of metrics: how they are checked, added up over clients, and turned into ratios.

The keys are listed in ``fl_queue.metrics``. No torch and no Redis here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_queue.common.safe_json import printable
from fl_queue.errors import MessageError
from fl_queue.metrics import forms, reports
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Sums

SCORE_BINS = 1000
#: Log-odds between the bins of ``logit_histograms``: 0.05 apart within +-20, then 7 % apart to
#: +-20,000. Bins of the probability hold all samples of a rare class in one.
BIN_EDGES = np.concatenate(
    [-np.geomspace(20_000, 20, 100)[:-1], np.linspace(-20, 20, 801), np.geomspace(20, 20_000, 100)[1:]]
)  # fmt: skip
#: Over how many items ``loss_sum`` is a sum, where those are not the examples: tokens, pixels.
LOSS_ITEMS = "loss_items_sum"
#: Names of the counts of clients and examples in merged sums.
OVER = "over"
#: What each kind of sum gives, but for those that end in ``_sum``.
_GIVES = {
    "confusion": ("accuracy", "f1"),
    "score_histograms": ("auc",),
    "logit_histograms": ("auc",),
    **reports.NAMES,
}
#: Which of these gives a metric, where as many clients and examples have each: the largest.
_PRECEDENCE = {
    "confusion": 0,
    "score_histograms": 1,
    "logit_histograms": 2,
    **dict.fromkeys(reports.NAMES, 5),
}
#: Classes up to which there is a confusion matrix: a header takes ``header.MAX_MAP_ITEMS`` values.
MAX_CLASSES = 60
MAX_KEYS = 64
MAX_KEY_LENGTH = 100
#: What else a client may report of a version, beside the version itself, by the begin of the keys.
BESIDE = ("personal", "finetuned")
#: Classes up to which that has a confusion matrix of its own: a header is bounded.
BESIDE_CLASSES = 32
# Counts up to this add up in int64 over eight million clients, and are exact as floats.
MAX_COUNT = 2**40
# Sums up to this add up over any number of clients without overflowing a float.
MAX_SUM = 1e200


def confusion(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> list[list[int]]:
    """Counts of (true class, predicted class) pairs: (N,) and (N,) -> ``classes`` x ``classes``."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    table: list[list[int]] = counts.reshape(classes, classes).tolist()
    return table


def logit_histograms(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> list[list[int]]:
    """Histograms of the log-odds (N,) of class 0's and of class 1's samples; NaN counts as the lowest."""
    bins = np.searchsorted(BIN_EDGES, np.nan_to_num(logits, nan=-np.inf), side="right")
    return [np.bincount(bins[truth == side], minlength=SCORE_BINS).tolist() for side in (0, 1)]


def merge(parts: Sequence[Sums]) -> dict[str, Any]:
    """
    The sums of all parts of one data set together, bit-identical in any order of the parts.

    A part without examples counts for nothing. A key that one of the others lacks is left out: its
    sum would be divided by the examples of those that did not report it.

    Raises:
        MessageError: A key has another shape in another part.
    """
    parts = [part for part in parts if part.get("num_examples", 0) > 0]
    merged: dict[str, Any] = {"num_examples": sum(part["num_examples"] for part in parts)}
    if parts:
        common = set.intersection(*(set(part) for part in parts)) - {"num_examples"}
        for key in sorted(common):
            merged[key] = _add(key, [part[key] for part in parts])
    return merged


def check(sums: Any) -> None:
    """
    Validate sums that came from outside.

    Raises:
        MessageError: Names the key, and what it may be.
    """
    if not isinstance(sums, Mapping):
        raise MessageError("metrics: not a table of sums")
    if len(sums) > MAX_KEYS:
        raise MessageError(f"metrics: {len(sums)} keys; at most {MAX_KEYS} are allowed")
    for key, value in sums.items():
        _check_item(key, value)


def sound(sums: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Split sums that came from outside in those that ``check`` accepts and those that it does not.

    A bad number of examples takes all sums with it that are of these examples, and a bad number of items the
    loss over them: they would be divided by something else.

    Returns:
        The good sums, and key -> why each other one is not used, sorted; the key is empty where it is all of them.
    """
    if not isinstance(sums, Mapping) or len(sums) > MAX_KEYS:
        try:
            check(sums)
        except MessageError as exc:
            return {}, {"": exc.reason}
    kept, bad = dict[str, Any](), dict[str, str]()
    for key, value in sums.items():
        try:
            _check_item(key, value)
        except MessageError as exc:
            bad[printable(str(key)[:MAX_KEY_LENGTH])] = exc.reason
        else:
            kept[key] = value
    for prefix in ("", *(f"{part}_" for part in BESIDE)):
        if f"{prefix}num_examples" in bad:
            kept = {key: kept[key] for key in kept if key.removesuffix(_kind(key)) != prefix}
        if prefix + LOSS_ITEMS in bad:
            kept.pop(f"{prefix}loss_sum", None)
    return kept, dict(sorted(bad.items()))


def _check_item(key: Any, value: Any) -> None:
    """Raise MessageError unless a key of sums and its value are such."""
    if not isinstance(key, str) or len(key) > MAX_KEY_LENGTH:
        raise MessageError(f"metrics: a key is not text of at most {MAX_KEY_LENGTH} characters")
    kind = _kind(key)
    if kind == "num_examples":
        _check(key, _is_count(value), "a count")
    elif kind == "confusion":
        _check(key, _is_confusion(value), f"a square table of counts, {MAX_CLASSES} at most")
    elif kind in ("score_histograms", "logit_histograms"):
        _check(key, _is_histograms(value), f"two lists of {SCORE_BINS} counts")
    elif kind in reports.NAMES:
        wanted = reports.problem(kind, value)
        _check(key, not wanted, wanted)
    elif parts := forms.parts_of(kind):
        wanted = forms.problem(parts[1], value, is_sum)
        _check(key, not wanted, wanted)
    else:
        _check(key, key.endswith("_sum"), "a known key, nor does it end in _sum")
        named = identifiers.is_metric(kind.removesuffix("_sum"))
        _check(key, named, "a name: a letter, then letters, digits, _, . and -, at most 64")
        _check(key, is_sum(value), "a finite number")


def is_sum(value: Any) -> bool:
    """Whether this is a number that a sum may be: finite, and so small that sums of it are."""
    return type(value) in (int, float) and -MAX_SUM <= value <= MAX_SUM


def is_table(key: str) -> bool:
    """Whether a key of sums stands for lists of counts, and not for one number."""
    return _kind(key) in _GIVES or is_form(key)


def is_form(key: str) -> bool:
    """Whether a key of sums is that of a metric in a form of ``forms``."""
    return forms.parts_of(_kind(key)) is not None


def finish(sums: Sums) -> dict[str, float]:
    """
    Ratios a person reads: ``loss``, ``accuracy``, ``f1``, ``auc``, and the means of other sums.

    ``f1`` is that of class 1 for two classes, else the plain mean over the classes that occur
    (0 where a class is never hit). ``auc`` is the area under the ROC curve by the trapezoid rule,
    scores in the same bin counting half; it is left out while one class has no samples.
    What a client reported beside the version has its own names: ``personal_accuracy``.
    Empty without examples.
    """
    plain = dict(sums)
    over = plain.pop(OVER, {})
    finished: dict[str, float] = {}
    for part in BESIDE:
        if f"{part}_num_examples" in sums:
            keys = [key for key in sums if key.startswith(f"{part}_")]
            inner = {key[len(part) + 1 :]: plain.pop(key) for key in keys}
            within = {key[len(part) + 1 :]: over[key] for key in keys if key in over}
            found = _finish(inner, within)
            finished |= {f"{part}_{name}": value for name, value in found.items()}
    return _finish(plain, over) | finished


def told_by(sums: Sums) -> dict[str, tuple[int, int]]:
    """Name of each merged metric -> how many clients, and how many examples, it is of."""
    found: dict[str, tuple[int, int]] = {}
    over = sums.get(OVER, {})
    for prefix in ("", *(f"{part}_" for part in BESIDE)):
        keys = [key for key in over if key.removesuffix(_kind(key)) == prefix]
        inner = {key.removeprefix(prefix): over[key] for key in keys}
        for name, key in _chosen(inner, inner).items():
            clients, examples = inner[key]
            found[prefix + name] = (clients, examples)
    return found


def beside(part: str, sums: Sums) -> dict[str, Any]:
    """
    Sums of another model than the version, under the names of that part.

    Args:
        part: One of ``BESIDE``.
        sums: As of any model. Of many classes only the hits are kept, and no histograms.
    """
    kept = {
        key: value
        for key, value in sums.items()
        if not key.endswith(("_histograms", "_report")) and not _is_long(value)
    }
    table = kept.get("confusion")
    if table is not None and len(table) > BESIDE_CLASSES:
        kept["accuracy_sum"] = sum(row[index] for index, row in enumerate(table))
        del kept["confusion"]
    return {f"{part}_{key}": value for key, value in kept.items()}


def _is_long(value: Any) -> bool:
    """Whether a macro mean is over more classes than are kept beside the version."""
    is_macro = isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)
    return is_macro and len(value[0]) > BESIDE_CLASSES


def only_beside(finished: Mapping[str, float]) -> dict[str, float]:
    """Of finished metrics those that are not the version's own."""
    parts = tuple(f"{part}_" for part in BESIDE)
    return {name: value for name, value in finished.items() if name.startswith(parts)}


def _names(kind: str) -> Sequence[str]:
    """The metrics that a key gives."""
    if kind == LOSS_ITEMS:
        return ()
    if parts := forms.parts_of(kind):
        return (parts[0],)
    return _GIVES.get(kind, (kind.removesuffix("_sum"),) if kind.endswith("_sum") else ())


def _chosen(keys: Iterable[str], over: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """
    Name of each metric -> the one key that gives it.

    That of most clients is taken, of equals that of more examples: a single client would else replace what all
    others have, under another key of the same name. Of equals a sum goes before a form, then come the new
    histograms, the old ones and the confusion matrix.

    Args:
        over: Key -> clients and examples, where the sums are of several clients.
    """

    def rank(key: str) -> tuple[int, int, int, str]:
        clients, examples = over.get(key, (0, 0))
        kind = 4 if key.endswith("_sum") else 3
        return clients, examples, _PRECEDENCE.get(key, kind), key

    return {name: key for key in sorted(keys, key=rank) for name in _names(key)}


def _finish(sums: Sums, over: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Args: ``over``: key -> clients and examples, where not all examples have it."""
    if not sums.get("num_examples", 0):
        return {}
    finished: dict[str, float] = {}
    chosen = _chosen(sums, over)
    for key in dict.fromkeys(chosen.values()):
        found = _values(key, sums, over)
        finished |= {name: value for name, value in found.items() if chosen.get(name) == key}
    return finished


def _values(key: str, sums: Sums, over: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The metrics that a key gives, with their values; those that have none are left out."""
    if key == "confusion":
        return _classification(np.array(sums[key], dtype=np.int64))
    if key in reports.NAMES:
        return reports.values_of(key, sums[key])
    if key in _GIVES:
        return _area_under_curve(*sums[key])
    if parts := forms.parts_of(key):
        value = forms.value_of(parts[1], sums[key])
        return {} if value is None else {parts[0]: value}
    count = over.get(key, (0, sums["num_examples"]))[1]
    if key == "loss_sum" and sums.get(LOSS_ITEMS, 0) > 0:
        count = sums[LOSS_ITEMS]
    return {key.removesuffix("_sum"): float(sums[key]) / float(count)}


def _add(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], list):
        if any(np.shape(value) != np.shape(values[0]) for value in values):
            raise MessageError(f"metrics.{key}: its shape differs between clients")
        if _kind(key) in reports.NAMES:
            return reports.added(values)
        if forms.parts_of(_kind(key)):
            return [_add(key, [*parts]) for parts in zip(*values, strict=True)]
        tables = [np.array(value, dtype=np.int64) for value in values]
        return sum(tables[1:], start=tables[0]).tolist()
    if all(isinstance(value, int) for value in values):
        return sum(values)
    try:
        # Correctly rounded whatever the order, which a running float sum is not.
        return math.fsum(values)
    except (ValueError, OverflowError):  # Infinities of both signs, or a sum beyond a float.
        return math.nan


def _kind(key: str) -> str:
    """A key without the prefix that names its model."""
    return next((key[len(p) + 1 :] for p in BESIDE if key.startswith(f"{p}_")), key)


def _check(key: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise MessageError(f"metrics.{printable(key)}: is not {wanted}")


def _is_count(value: Any) -> bool:
    # A bool is an int to isinstance.
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_counts(value: Any, length: int) -> bool:
    if not isinstance(value, list) or len(value) != length:
        return False
    # By the thousand in every element: its least and largest stand for all, where all are of the type.
    return {int}.issuperset(map(type, value)) and (
        not value or (min(value) >= 0 and max(value) <= MAX_COUNT)
    )


def _is_confusion(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CLASSES:
        return False
    return all(_is_counts(row, len(value)) for row in value)


def _is_histograms(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(_is_counts(side, SCORE_BINS) for side in value)


def _classification(table: NDArray[np.int64]) -> dict[str, float]:
    hits = np.diagonal(table)
    occurrences = table.sum(axis=0) + table.sum(axis=1)
    if not occurrences.any():
        return {}
    # F1 = 2 TP / (2 TP + FP + FN); the denominator is how often a class is true or predicted.
    scores = np.divide(2 * hits, occurrences, out=np.zeros(len(hits)), where=occurrences > 0)
    f1 = scores[1] if len(hits) == 2 else scores[occurrences > 0].mean()
    return {"accuracy": int(hits.sum()) / int(table.sum()), "f1": float(f1)}


def _area_under_curve(negatives: Sequence[int], positives: Sequence[int]) -> dict[str, float]:
    pairs = sum(negatives) * sum(positives)
    if pairs == 0:
        return {}
    below = 0
    twice_won = 0
    for negative, positive in zip(negatives, positives, strict=True):
        twice_won += positive * (2 * below + negative)
        below += negative
    return {"auc": twice_won / (2 * pairs)}


def merge_clients(parts: Mapping[str, Sums]) -> dict[str, Any]:
    """
    The sums of clients together: each key over the clients that have it, with their number beside it.

    Metrics come from the clients themselves. One that held nothing out, whose loss is not finite, or
    that has fewer keys than others takes nothing from what the others have. Of a key that has another
    shape at some clients (a confusion matrix of another size) the shape of most clients is taken, of
    equals that of more examples; who came first decides nothing.

    Args:
        parts: Client -> checked sums.

    Returns:
        Sums with ``over``: of each key how many clients had it, and how many examples they have.
        ``num_examples`` is that of all clients. Empty where no client has examples.
    """
    merged: dict[str, Any] = {}
    over: dict[str, list[int]] = {}
    for key in sorted({key for sums in parts.values() for key in sums} - {OVER}):
        fitting = _fitting(key, _reporting(key, [*parts.values()]))
        if not fitting:
            continue
        merged[key] = _add(key, [sums[key] for sums in fitting])
        if not key.endswith("num_examples"):
            over[key] = [len(fitting), sum(_examples(sums, key) for sums in fitting)]
    return merged | ({OVER: over} if over else {})


def _reporting(key: str, parts: Sequence[Sums]) -> list[Sums]:
    """The sums that have a key, of some examples; a loss and its number of items are of the same clients."""
    kind = _kind(key)
    prefix = key.removesuffix(kind)
    if kind in ("loss_sum", LOSS_ITEMS):
        both = {f"{prefix}loss_sum", f"{prefix}{LOSS_ITEMS}"}
        with_items = [sums for sums in parts if both <= sums.keys()]
        without = [sums for sums in parts if both & sums.keys() == {f"{prefix}loss_sum"}]
        parts = with_items if len(with_items) >= len(without) else without
    return [sums for sums in parts if key in sums and _examples(sums, key) > 0]


def _fitting(key: str, having: Sequence[Sums]) -> Sequence[Sums]:
    """Those in which a key has the shape that it has in most."""
    forms: dict[tuple[int, ...], list[Sums]] = {}
    for sums in having:
        forms.setdefault(np.shape(sums[key]), []).append(sums)
    if len(forms) < 2:
        return having

    def rank(form: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        return len(forms[form]), sum(_examples(sums, key) for sums in forms[form]), form

    return forms[max(forms, key=rank)]


def _examples(sums: Sums, key: str) -> int:
    """Number of examples of a key: a part beside the version has examples of its own."""
    part = next((f"{one}_" for one in BESIDE if key.startswith(f"{one}_")), "")
    return int(sums.get(f"{part}num_examples", sums.get("num_examples", 0)))
