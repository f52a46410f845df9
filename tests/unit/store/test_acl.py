"""That real servers, with and without selectors, take the rules; what they forbid is tested elsewhere."""

from __future__ import annotations

import pytest

from fl_queue.errors import ConfigError
from fl_queue.store import acl, key_table, keyspace


def test_a_client_is_one_user_where_there_are_selectors_and_three_where_not() -> None:
    new, old = acl.users("client", "a-1", (7, 2)), acl.users("client", "a-1", (6, 2))

    assert [(user.name, user.purpose) for user in new] == [("flq-client-a-1", "all")]
    assert [(user.name, user.purpose) for user in old] == [
        (f"flq-client-a-1_{purpose}", purpose) for purpose in acl.SPLIT
    ]


def test_no_key_but_that_of_enrolments_begins_as_the_operator_s_side_may_not_write() -> None:
    """The rule leaves out all that begins with ``flq:e``."""
    keys = [key.pattern for key in key_table.KEYS]
    assert len(keys) > 30
    assert [key for key in keys if key.startswith("flq:e")] == [keyspace.ENROLLED]


@pytest.mark.parametrize("who", ["", "a*", "a b", "a_b", "../x", "aggregator", "a>x"])
def test_what_is_no_client_id_gets_no_user(who: str) -> None:
    with pytest.raises(ConfigError, match="is not a client id"):
        acl.users("client", who)


def test_a_line_of_a_file_and_the_arguments_of_setuser_agree() -> None:
    [user] = acl.users("client", "a")

    assert user.line("#00") == f"user flq-client-a on #00 {' '.join(user.rules)}"
    assert user.setuser("#00") == ["flq-client-a", "reset", "on", "#00", *user.rules]
