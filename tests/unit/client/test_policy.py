"""A site's policy file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.client import policy
from fl_queue.common.options import as_plain
from fl_queue.errors import ConfigError, PolicyRefusal


def test_without_a_file_there_are_rules_all_the_same() -> None:
    """A site that has set nothing shows nothing of few rows."""
    found = policy.read("")
    assert (found.min_rows, found.min_cell, found.max_questions) == (50, 10, 50)
    assert all(map(found.is_visible, ["age", "name"]))


def test_the_digest_is_that_of_the_rules(tmp_path: Path) -> None:
    """Not of the file's spaces and comments."""
    file = tmp_path / "site.toml"
    file.write_text("# none\nmin_cell   = 10\n")
    assert policy.read(str(file)).digest == policy.read("").digest
    file.write_text("min_cell = 11\n")
    assert policy.read(str(file)).digest != policy.read("").digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("min_row = 3", "min_row: there is no such field"),
        ("min_cell = 0", "min_cell: 0 is too small"),
        ("min_rows = 'many'", "min_rows: 'many' is not a whole number"),
        ("dominance = 101", "dominance: 101 is too large"),
        ("columns = 'age'", "columns: 'age' is not a list"),
        ("min_cell = ", "is no TOML"),
        ("allow = ['trains']", "allow: 'trains' is not one of statistics"),
        ("share = 1", "share: 1 is not true or false"),
    ],
)
def test_a_broken_file_refuses_everything(tmp_path: Path, text: str, reason: str) -> None:
    """The reason stays at the site."""
    file = tmp_path / "site.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="--policy") as refused:
        policy.read(str(file))
    assert reason in str(refused.value)
    assert refused.value.public == "this site's policy cannot be used, so nothing is asked"


def test_a_missing_file_refuses_everything(tmp_path: Path) -> None:
    """It may have been unmounted: rules without it would be others."""
    with pytest.raises(ConfigError, match="cannot be read"):
        policy.read(str(tmp_path / "none.toml"))


def test_columns_by_patterns() -> None:
    """Those that are never shown do not exist, whatever the list of the others."""
    rules = policy.SitePolicy.of_mapping(
        {"columns": ["lab_*", "age", "name"], "never": ["*_id", "name"]}
    )
    names = ["age", "lab_a", "lab_id", "name", "sex"]
    assert list(filter(rules.is_visible, names)) == ["age", "lab_a"]


@pytest.mark.parametrize("value", ["masked", "no"])
def test_trees_are_refused_unless_they_are_allowed(value: str) -> None:
    """The rule is named."""
    policy.SitePolicy.of_mapping({"trees": "clear"}).check_asked("trees")
    with pytest.raises(PolicyRefusal, match=rf"trees = {value}"):
        policy.SitePolicy.of_mapping({"trees": value}).check_asked("trees")
    with pytest.raises(PolicyRefusal, match="only under secure sums"):
        policy.SitePolicy().check_asked("trees")


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        ("max_parameters", 0.2),
        ("max_numbers", 0.4),
        ("name_levels", False),
        ("allow", ["statistics"]),
        ("per_site", False),
        ("share", True),
        ("trees", "clear"),
    ],
)
def test_a_rule_that_came_later_changes_no_digest_unless_it_is_set(
    rule: str, other: object
) -> None:
    """Receipts and ledgers have the digests of files that do not name it."""
    unset, default = policy.SitePolicy(), policy.RULES[rule].default
    assert unset.digest == policy.SitePolicy.of_mapping({rule: as_plain(default)}).digest
    assert unset.digest != policy.SitePolicy.of_mapping({rule: other}).digest


@pytest.mark.parametrize(
    ("rules", "digest"),
    [({}, "37d967301ec6f616"), ({"min_cell": 5, "never": ["name"]}, "ca4cd6edf2144132")],
)
def test_the_digests_of_the_first_rules(rules: dict[str, object], digest: str) -> None:
    """Golden: those of the release in which policies came."""
    assert policy.SitePolicy.of_mapping(rules).digest == digest


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_name_of_several_columns_is_visible_if_each_is(mark: str) -> None:
    """As the header's cells are by another delimiter; a name that is listed is that column."""
    rules = policy.SitePolicy.of_mapping({"columns": ["lab_*", f"a{mark}b"], "never": ["*_id"]})
    names = [f"lab_a{mark}hiv", f'lab_a{mark} "lab_b"', f"lab_a{mark}lab_id", f"a{mark}b"]
    assert list(filter(rules.is_visible, names)) == [names[1], names[3]]
