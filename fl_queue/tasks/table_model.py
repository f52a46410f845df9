"""
The model of the task ``table``: raw rows in, answers in the unit of the target out. Imports torch.

Columns are encoded and standardised inside it, by statistics that are averaged over the clients of the first round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_queue.config.table_options import Feature
from fl_queue.tables.schema import OTHER

# In float32, mean(x^2) - mean(x)^2 of a column whose spread is below a thousandth of its mean is
# mostly rounding; such a column counts as constant.
_CONSTANT = 1e-6
_MONTHS, _WEEKDAYS = 12, 7
_YEAR, _DAY = 2000, 10_957


class TableModel(nn.Module):
    """
    Raw rows (B, features) -> answers.

    A row has each feature's number, of booleans 0 or 1, of dates the days since 1970-01-01, of categories the code
    of the level (the number of levels for any other); NaN where the value is missing. Answers are log-odds (B,) of the
    second class, scores (B, classes), log-odds (B, labels), the target's expectation (B,) in its own unit, or the
    probability (B, intervals) that there was no event until the end of each interval.

    Args:
        features: In the order of the row's columns.
        objective: As ``task.objective``.
        outputs: Classes, labels or intervals; 1 else.
        hidden: Sizes of the hidden layers.
        target_unit: Agreed mean and standard deviation of the target of a regression.
    """

    present: Tensor
    means: Tensor
    squares: Tensor
    standardised: Tensor

    agreed: Tensor
    order: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        objective: str,
        outputs: int,
        hidden: Sequence[int],
        target_unit: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.objective = tuple(features), objective
        self._scaled = [index for index, one in enumerate(features) if _is_scaled(one)]
        units = [features[index].unit for index in self._scaled]
        # The last one is the target's, where its unit is that of the answer.
        units += [target_unit] if objective == "regression" else []
        self._learnt = [place for place, unit in enumerate(units) if unit is None]
        self._keep_agreed(units)
        if self._learnt or not units:
            # Means over rows can be averaged over sites; a deviation, or a mean over the present rows, cannot.
            for name in ("present", "means", "squares"):
                self.register_buffer(name, torch.zeros(len(self._learnt)))
            # Integer buffers are merged by maximum, so one client suffices.
            self.register_buffer("standardised", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            width = self._encoded(torch.zeros(1, len(features))).shape[1]
        self.layers = _layers([width, *hidden, outputs])

    def _keep_agreed(self, units: Sequence[tuple[float, float] | None]) -> None:
        """Keep what is agreed beside the state that travels: it is the config's, and not averaged."""
        agreed = [unit for unit in units if unit is not None]
        places = [place for place, unit in enumerate(units) if unit is not None]
        order = torch.tensor([*self._learnt, *places], dtype=torch.int64).argsort()
        found = torch.tensor(agreed, dtype=torch.float32).reshape(len(agreed), 2)
        # A column that is constant is only centred.
        found[:, 1] = torch.where(found[:, 1] > 0, found[:, 1], 1.0)
        self.register_buffer("agreed", found, persistent=False)
        self.register_buffer("order", order, persistent=False)

    @property
    def awaits_statistics(self) -> bool:
        """Whether a column's statistics are those of the first round, and there was none yet."""
        return hasattr(self, "standardised") and not self.standardised

    def adopt_statistics(self, rows: Tensor, target: Tensor) -> Tensor:
        """Set the buffers from rows (N, features) and targets (N,). Returns the mean squares."""
        exact = self._numbers(rows.to(self.means.device, torch.float64))
        if self.objective == "regression":
            exact = torch.cat([exact, target.to(exact).reshape(-1, 1)], dim=1)
        exact = exact[:, self._learnt]
        known = ~exact.isnan()
        filled = torch.where(known, exact, 0.0)
        self.present.copy_(known.double().mean(dim=0))
        self.means.copy_(filled.mean(dim=0))
        self.squares.copy_((filled**2).mean(dim=0))
        self.standardised.fill_(1)
        return self.squares

    def forward(self, rows: Tensor) -> Tensor:
        """Compute the answers."""
        scores = self.scores(rows)
        if self.objective == "counts":
            return scores.exp()
        if self.objective == "survival":
            return torch.cumsum(functional.logsigmoid(-scores), dim=1).exp()
        if self.objective == "regression":
            mean, deviation = self._statistics()
            return mean[-1] + deviation[-1] * scores
        return scores

    def scores(self, rows: Tensor) -> Tensor:
        """What the layers give: (B,), or (B, outputs) of classes, labels and survival."""
        found: Tensor = self.layers(self._encoded(rows))
        is_single = self.objective in ("binary", "regression", "counts")
        return found.squeeze(1) if is_single else found

    def unit(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the target of a regression."""
        mean, deviation = self._statistics()
        return mean[-1], deviation[-1]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the values that are there; 0 and 1 before the first round."""
        if not len(self.agreed):
            return self._learnt_statistics()
        mean, deviation = self.agreed[:, 0], self.agreed[:, 1]
        if self._learnt:
            learnt = self._learnt_statistics()
            mean, deviation = torch.cat([learnt[0], mean]), torch.cat([learnt[1], deviation])
        return mean[self.order], deviation[self.order]

    def _learnt_statistics(self) -> tuple[Tensor, Tensor]:
        share = self.present.clamp_min(torch.finfo(torch.float32).tiny)
        mean, square = self.means / share, self.squares / share
        variance = square - mean**2
        constant = variance <= _CONSTANT * square
        return mean, torch.where(constant, 1.0, variance).sqrt()

    def _numbers(self, rows: Tensor) -> Tensor:
        """The columns (B, scaled) that are standardised; of a date in parts its year."""
        if not self._scaled:
            return rows[:, :0]
        return torch.stack([self._number(rows, index) for index in self._scaled], dim=1)

    def _number(self, rows: Tensor, index: int) -> Tensor:
        values, feature = rows[:, index], self.features[index]
        if feature.kind != "date":
            return values
        # From 2000 on: the variance of numbers much larger than their spread is lost in float32.
        return _calendar(values)[0] - _YEAR if feature.parts else values - _DAY

    def _encoded(self, rows: Tensor) -> Tensor:
        """Inputs of the layers: (B, features) -> (B, width)."""
        numbers = self._numbers(rows)
        mean, deviation = (found[: len(self._scaled)] for found in self._statistics())
        fills = mean.clone()
        for place, index in enumerate(self._scaled):
            missing = self.features[index].missing
            if not isinstance(missing, str):
                fills[place] = missing
        filled = torch.where(numbers.isnan(), fills, numbers)
        parts = [(filled - mean) / deviation]
        for index, feature in enumerate(self.features):
            values = rows[:, index]
            if feature.indicator:
                parts.append(values.isnan().to(rows.dtype).unsqueeze(1))
            if feature.kind == "category":
                parts.append(_category(values, feature))
            if feature.parts:
                _, month, weekday = _calendar(values)
                for name, part, count in (
                    ("month", month, _MONTHS), ("weekday", weekday, _WEEKDAYS)
                ):  # fmt: skip
                    if name in feature.parts:
                        parts.append(_one_hot(part, count, values.isnan()))
        return torch.cat(parts, dim=1)


def _is_scaled(feature: Feature) -> bool:
    if feature.kind == "category":
        return False
    return not feature.parts or "year" in feature.parts


def _category(codes: Tensor, feature: Feature) -> Tensor:
    """Indicators of a category: its levels, any other level, and a missing value if that is a level."""
    levels, missing = len(feature.levels), codes.isnan()
    count = levels + OTHER + 1
    fill, nowhere = 0.0, missing
    if feature.most_frequent:
        fill, nowhere = (
            float(feature.levels.index(feature.most_frequent)),
            torch.zeros_like(missing),
        )
    known = torch.where(missing, fill, codes).clamp(0, levels + OTHER).long()
    found = _one_hot(known.to(codes), count, nowhere)
    if feature.missing == "level":
        found = torch.cat([found, missing.to(codes.dtype).unsqueeze(1)], dim=1)
    if not feature.reference:
        return found
    at = feature.levels.index(feature.reference)
    return torch.cat([found[:, :at], found[:, at + 1 :]], dim=1)


def _one_hot(values: Tensor, count: int, missing: Tensor) -> Tensor:
    """Indicators (B, count) of whole numbers (B,); zeros where the value is missing."""
    places = torch.arange(count, device=values.device, dtype=values.dtype)
    found = (values.unsqueeze(1) == places) & ~missing.unsqueeze(1)
    return found.to(values.dtype)


def _calendar(days: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Year, month (0: January) and weekday (0: Monday) of days since 1970-01-01; NaN of a missing one.

    Source:
        Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    """
    missing = days.isnan()
    whole = torch.where(missing, 0.0, days).round().long()
    weekday = (whole + 3).remainder(7)
    shifted = whole + 719_468
    era = shifted.div(146_097, rounding_mode="floor")
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted_month = (5 * of_year + 2) // 153  # 0: March.
    month = (shifted_month + 2).remainder(12)
    year = year + era * 400 + (month < 2).long()
    return tuple(  # type: ignore[return-value]
        torch.where(missing, torch.nan, part.to(days.dtype)) for part in (year, month, weekday)
    )


def _layers(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these sizes, with ReLU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
