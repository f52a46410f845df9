"""Options of the task ``regression``."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.analyses import regression_options
from fl_queue.analyses.design import Feature
from fl_queue.errors import ConfigError
from tests.support.regression_tables import OPTIONS

STAGE = {"type": "category", "levels": ("I", "II"), "reference": "II"}


def _options(**changed: Any) -> dict[str, Any]:
    return {**OPTIONS, "features": "age, stage", **changed}


def test_features() -> None:
    """Numbers as a rule; levels make a category, and its first level is the reference."""
    found = regression_options.design_of(_options(columns={"stage": STAGE}))
    assert found.features == (Feature("age"), Feature("stage", ("I", "II"), "II"))
    plain = regression_options.design_of(_options(columns={"stage": {"levels": ("I", "II")}}))
    assert plain.features[1].reference == "I"
    regression_options.check(_options(columns={"age": {"type": "boolean"}, "stage": STAGE}))
    dated = _options(columns={"age": {"type": "date", "date": ("year", "month")}})
    assert regression_options.design_of(dated).features[0] == Feature(
        "age", is_date=True, parts=("year", "month")
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": " , "}, "task.features: is empty"),
        ({"target": ""}, "task.target: is empty"),
        ({"target": "age"}, "task.features: age is listed twice"),
        ({"offset": "stage"}, "task.features: stage is listed twice"),
        ({"features": "const"}, "task.features: const is the intercept's name"),
        ({"features": ", ".join(f"x{i}" for i in range(512))}, "513 coefficients are more"),
        ({"columns": {"agee": {}}}, "task.columns.agee: there is no such field"),
        ({"columns": {"age": 3}}, "task.columns.age: is no table"),
        ({"columns": {"age": {"levls": ("I",)}}}, "task.columns.age.levls: there is no such"),
        ({"columns": {"age": {"type": "text"}}}, "task.columns.age.type: 'text' is not one"),
        ({"columns": {"age": {"levels": "I, II"}}}, "task.columns.age.levels: is no list"),
        ({"columns": {"age": {"type": "number", "levels": ("I", "II")}}}, "is for type"),
        ({"columns": {"age": {"reference": "I"}}}, "is for type"),
        ({"columns": {"age": {"levels": ("I",)}}}, "are not 2 to 1000 different texts"),
        ({"columns": {"age": {"levels": ("I", "I")}}}, "are not 2 to 1000 different texts"),
        ({"columns": {"age": {"levels": ("I", "II"), "reference": "IV"}}}, "is not one of the"),
        ({"columns": {"age": {"date": ("year",)}}}, "task.columns.age.date: is for dates"),
        ({"columns": {"age": {"type": "date", "date": ("hour",)}}}, "lists some of year, month"),
        ({"columns": {"age": {"type": "date", "date": ("year", "year")}}}, "each once"),
        ({"columns": {"age": {"type": "date", "date": "year"}}}, "date: is no list of texts"),
        ({"classes": "no, yes"}, "task.classes: are those of family logistic"),
        ({"classes": "no", "family": "logistic"}, "task.classes: are not two different"),
        ({"classes": "no, no", "family": "logistic"}, "task.classes: are not two different"),
        ({"family": "cox"}, 'task.target: is not two columns; family cox wants "time,event"'),
        ({"family": "cox", "target": "a,b,c"}, "task.target: is not two columns"),
        ({"family": "cox", "target": "age,died"}, "task.features: age is listed twice"),
        ({"family": "cox", "target": "months,died", "weights": "w"}, "task.weights: is not for"),
        ({"family": "cox", "target": "months,died", "robust": "HC0"}, "task.robust: is not for"),
        ({"family": "cox", "target": "months,died", "strata": "sex"}, "task.columns.sex: has no"),
        ({"strata": "sex"}, "task.strata: is for family cox"),
        ({"ties": "efron"}, "task.ties: is for family cox"),
        ({"ridge": 1.0, "robust": "HC0"}, "task.robust: has no meaning with task.ridge"),
    ],
)
def test_options_that_contradict(changed: dict[str, Any], message: str) -> None:
    """Each is refused when the config is read, and names its field."""
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        regression_options.check(_options(**changed))


def test_a_time_to_an_event() -> None:
    """Time and event are the target, strata are categories that are no features."""
    strata = {"sex": {"levels": ("F", "M")}}
    found = regression_options.design_of(
        _options(family="cox", target="months, died", strata="sex", columns=strata)
    )
    assert (found.time, found.target) == ("months", "died")
    assert found.strata == (Feature("sex", ("F", "M"), "F"),)
    assert found.columns.numbers == ("age", "stage", "months", "died")
    assert found.names == ("age", "stage", "sex", "died", "months")
