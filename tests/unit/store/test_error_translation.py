"""Classification of every error reply of Redis, in the words of its servers."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis import exceptions
from redis._parsers.base import BaseParser

from fl_queue.errors import StoreUnavailable, Trouble
from fl_queue.store.connection import connect, script
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from fl_queue.store.error_translation import classify, code_of, in_words, is_full, translated

_SNAPSHOTS = (
    "Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."
    " Commands that may modify the data set are disabled, because this instance is configured to"
    " report errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error option)."
    " Please check the Redis logs for details about the RDB error."
)
_AOF = "Errors writing to the AOF file: No space left on device"
_62 = "ERR Error running script (call to f_19ba3cdc1f2d7e59ae1b3b6a4d5a4f5a6c7d8e9f): @user_script:19: @user_script: 19: -"
_7 = " script: 19ba3cdc1f2d7e59ae1b3b6a4d5a4f5a6c7d8e9f, on @user_script:19."

#: As the servers send them: Redis 6.2, Redis 7 and Valkey 8, word for word.
NOT_NOW = {
    f"MISCONF {_SNAPSHOTS}": "MISCONF",
    f"MISCONF {_AOF}": "MISCONF",
    f"MISCONF Valkey{_SNAPSHOTS[5:]}": "MISCONF",
    f"{_62}MISCONF {_SNAPSHOTS}": "MISCONF",
    f"{_62}MISCONF {_AOF}": "MISCONF",
    f"MISCONF {_SNAPSHOTS}{_7}": "MISCONF",
    f"EXECABORT Transaction discarded because of: MISCONF {_SNAPSHOTS}": "MISCONF",
    f"EXECABORT Transaction discarded because of: -MISCONF {_SNAPSHOTS}": "MISCONF",
    "NOREPLICAS Not enough good replicas to write.": "NOREPLICAS",
    f"{_62}NOREPLICAS Not enough good replicas to write.": "NOREPLICAS",
    f"NOREPLICAS Not enough good replicas to write.{_7}": "NOREPLICAS",
    "EXECABORT Transaction discarded because of: NOREPLICAS Not enough good replicas to write.": "NOREPLICAS",
    "READONLY You can't write against a read only replica.": "READONLY",
    "READONLY You can't write against a read only slave.": "READONLY",
    f"{_62}READONLY You can't write against a read only replica.": "READONLY",
    f"READONLY You can't write against a read only replica.{_7}": "READONLY",
    "READONLY Can not run script with write flag on readonly replica.": "READONLY",
    "EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.": "READONLY",
    "LOADING Redis is loading the dataset in memory": "LOADING",
    "LOADING Valkey is loading the dataset in memory": "LOADING",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "MASTERDOWN",
    "MASTERDOWN Link with MASTER is down and slave-serve-stale-data is set to 'no'.": "MASTERDOWN",
    "CLUSTERDOWN The cluster is down": "CLUSTERDOWN",
    "CLUSTERDOWN Hash slot not served": "CLUSTERDOWN",
    "CLUSTERDOWN The cluster is down and only accepts read commands": "CLUSTERDOWN",
    "TRYAGAIN Multiple keys request during rehashing of slot": "TRYAGAIN",
    "ASK 3999 127.0.0.1:6381": "ASK",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "BUSY",
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.": "BUSY",
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "BUSY",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "UNBLOCKED",
    "OOM command not allowed when used memory > 'maxmemory'.": "OOM",
    f"{_62}OOM command not allowed when used memory > 'maxmemory'.": "OOM",
    f"OOM command not allowed when used memory > 'maxmemory'.{_7}": "OOM",
    "OOM allow-oom flag is not set on the script,  can not run it when used memory > 'maxmemory'": "OOM",
    "EXECABORT Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'.": "OOM",
    "NOSCRIPT No matching script. Please use EVAL.": "NOSCRIPT",
    "NOSCRIPT No matching script.": "NOSCRIPT",
    "ERR max number of clients reached": "ERR",
    "ERR max number of clients + cluster connections reached": "ERR",
    "THROTTLED Something of tomorrow that no list names": "THROTTLED",
    f"{_62}THROTTLED Something of tomorrow": "THROTTLED",
    "EXECABORT Transaction discarded because of: THROTTLED Something of tomorrow": "THROTTLED",
}
NOT_ALLOWED = {
    "NOPERM this user has no permissions to run the 'config|set' command or its subcommand",
    "NOPERM this user has no permissions to run the 'get' command",
    "NOPERM this user has no permissions to access one of the keys used as arguments",
    "NOPERM User a has no permissions to run the 'get' command",
    "NOPERM No permissions to access a key",
    "NOPERM No permissions to access a channel",
    f"{_62[:-1]}The user executing the script can't run this command or subcommand",
    f"{_62[:-1]}The user executing the script can't access at least one of the keys mentioned in the command arguments",
    f"ERR ACL failure in script: User default has no permissions to run the 'set' command{_7}",
    f"NOPERM ACL failure in script: No permissions to access a key{_7}",
    "EXECABORT Transaction discarded because of: NOPERM this user has no permissions to run the 'get' command",
    "NOAUTH Authentication required.",
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "WRONGPASS invalid username-password pair",
    "ERR invalid password",
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
    "ERR wrong number of arguments for 'auth' command",
    "DENIED Redis is running in protected mode because protected mode is enabled, no bind address was specified, no authentication password is requested to clients.",
}
WRONG_MODE = {
    "ERR unknown command `TIME`, with args beginning with: ",
    "ERR unknown command 'TIME', with args beginning with: ",
    "ERR unknown command 'EVALSHA', with args beginning with: 'f00' '1' 'flq:healer' ",
    "MOVED 3999 127.0.0.1:6381",
    "CROSSSLOT Keys in request don't hash to the same slot",
}
#: Commands that were wrong: these stay what they are.
OF_COMMANDS = {
    "ERR value is not an integer or out of range",
    "ERR syntax error",
    "ERR EXEC without MULTI",
    "ERR DB index is out of range",
    "ERR no such key",
    "ERR wrong number of arguments for 'get' command",
    "ERR wrong number of arguments for 'get' command, OOM ",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    f"{_62}WRONGTYPE Operation against a key holding the wrong kind of value",
    f"WRONGTYPE Operation against a key holding the wrong kind of value{_7}",
    "ERR Error running script (call to f_19ba): @user_script:3: user_script:3: attempt to index a nil value (global 'x')",
    "ERR Error compiling script (new function): user_script:1: '=' expected near 'x'",
    f"ERR user_script:1: Script attempted to access nonexistent global variable 'x'{_7}",
    "BUSYGROUP Consumer Group name already exists",
    "NOGROUP No such key 'x' or consumer group",
    "EXECABORT Transaction discarded because of previous errors.",
    "BUSYKEY Target key name already exists.",
}


def parsed(reply: str) -> Exception:
    """A reply as redis-py hands it out."""
    error = BaseParser.parse_error(reply)
    assert isinstance(error, Exception)
    return error


def in_pipeline(reply: str) -> Exception:
    """The same reply to the second command of a pipeline, whose text quotes another one."""
    error = parsed(reply)
    command = ("SET", "key", "of pipeline caused error: OOM READONLY")
    redis.client.Pipeline.annotate_exception(None, error, 2, command)  # type: ignore[arg-type]
    return error


@pytest.mark.parametrize("made", [parsed, in_pipeline])
@pytest.mark.parametrize("reply", NOT_NOW)
def test_a_server_that_cannot_serve_now(reply: str, made: Any) -> None:
    error = made(reply)
    assert classify(error) is Trouble.not_now
    assert code_of(error) == NOT_NOW[reply]


@pytest.mark.parametrize("made", [parsed, in_pipeline])
@pytest.mark.parametrize("reply", sorted(NOT_ALLOWED))
def test_a_server_that_refuses_user_or_command(reply: str, made: Any) -> None:
    assert classify(made(reply)) is Trouble.not_allowed


@pytest.mark.parametrize("made", [parsed, in_pipeline])
@pytest.mark.parametrize("reply", sorted(WRONG_MODE))
def test_a_server_of_another_kind(reply: str, made: Any) -> None:
    assert classify(made(reply)) is Trouble.wrong_mode


@pytest.mark.parametrize("made", [parsed, in_pipeline])
@pytest.mark.parametrize("reply", sorted(OF_COMMANDS))
def test_a_command_that_was_wrong_stays_the_programs_fault(reply: str, made: Any) -> None:
    error = made(reply)
    assert classify(error) is None
    with pytest.raises(type(error)), translated("redis://host"):
        raise error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (redis.ConnectionError("Error 111 connecting to h:6379. Connection refused."), "gone"),
        (
            redis.ConnectionError("Error -2 connecting to h:6379. Name or service not known."),
            "gone",
        ),
        (redis.ConnectionError("Connection closed by server."), "gone"),
        (
            redis.ConnectionError("Error 104 while writing to socket. Connection reset by peer."),
            "gone",
        ),
        (redis.ConnectionError("Error 110 connecting to h:6379. Connection timed out."), "silent"),
        (redis.TimeoutError("Timeout reading from socket"), "silent"),
        (redis.TimeoutError("Timeout connecting to server"), "silent"),
        (exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400'"), "wrong_mode"),
        (exceptions.ClusterError("TTL exhausted."), "not_now"),
        (exceptions.RedisClusterException("Redis Cluster cannot be connected."), "not_now"),
        (
            exceptions.RedisClusterException("Cluster mode is not enabled on this node"),
            "wrong_mode",
        ),
        # As redis-py raises them without a reply of the server.
        (exceptions.ReadOnlyError("x"), "not_now"),
        (exceptions.OutOfMemoryError("x"), "not_now"),
        (exceptions.AuthenticationError("x"), "not_allowed"),
        (redis.WatchError("Watched variable changed."), None),
        (redis.DataError("Invalid input of type: 'dict'"), None),
        (ValueError("READONLY x"), None),
        (StoreUnavailable("redis://h", "x", Trouble.silent), "silent"),
    ],
)
def test_errors_without_a_reply(error: Exception, trouble: str | None) -> None:
    assert classify(error) == trouble


@pytest.mark.parametrize("made", [parsed, in_pipeline])
@pytest.mark.parametrize("reply", [*NOT_NOW, *sorted(NOT_ALLOWED), *sorted(WRONG_MODE)])
def test_the_message_is_one_short_line_with_advice(reply: str, made: Any) -> None:
    if isinstance(made(reply), exceptions.NoScriptError):
        return  # Raised as it is: the script is loaded and tried again.
    with pytest.raises(StoreUnavailable) as caught, translated("redis://host"):
        raise made(reply)
    assert caught.value.trouble is classify(made(reply))
    reason = caught.value.reason
    assert "\n" not in reason
    assert len(reason) < 200
    assert reason == in_words(made(reply))
    assert "Command #" not in reason, "the command that was sent stays private"


def test_a_pipeline_that_looks_at_errors_itself_takes_none_of_the_server_for_one_of_a_key(
    private_redis: EmbeddedRedis,
) -> None:
    client = connect(private_redis.url, private_redis.blob_url).control
    client.set("text", "x")
    with client.pipeline(transaction=False) as pipe:
        pipe.llen("text")
        pipe.set("text", "y")
        assert isinstance(pipe.execute(raise_on_error=False)[0], redis.ResponseError)
        with redis.Redis.from_url(private_redis.url) as operator:
            operator.config_set("min-replicas-to-write", 1)
        pipe.llen("text")
        pipe.set("text", "z")
        with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
            pipe.execute(raise_on_error=False)


def test_every_wording_of_a_full_server_is_recognised() -> None:
    for reply, code in NOT_NOW.items():
        if code == "NOSCRIPT":
            continue
        with pytest.raises(StoreUnavailable) as caught, translated("redis://host"):
            raise parsed(reply)
        assert is_full(caught.value) == (code == "OOM")


def test_a_script_that_cannot_be_loaded_is_a_server_that_cannot_be_used(
    private_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(private_redis.url, private_redis.blob_url).control
    # What two servers behind one address do: the script is loaded into one and called on the other.
    monkeypatch.setattr(client, "script_load", lambda text: "0" * 40)
    with pytest.raises(StoreUnavailable, match="forgets scripts") as caught:
        script(client, "identity")(keys=["flq:server:0"], args=["x"])
    assert caught.value.trouble is Trouble.not_now


@pytest.mark.parametrize("reply", ["NOREPLICAS", "READONLY", "OOM", "NOPERM"])
def test_what_real_servers_answer_a_script(private_redis: EmbeddedRedis, reply: str) -> None:
    client = connect(private_redis.url, private_redis.blob_url).data
    with redis.Redis.from_url(private_redis.blob_url) as operator:
        undo = _bring_about(operator, reply)
        try:
            with pytest.raises(StoreUnavailable) as caught:
                script(client, "identity")(keys=["flq:server:9"], args=["x"])
        finally:
            operator.execute_command(*undo)
    assert caught.value.__cause__ is not None
    assert code_of(caught.value.__cause__) == reply
    script(client, "identity")(keys=["flq:server:9"], args=["x"])


def _bring_about(operator: redis.Redis, reply: str) -> tuple[Any, ...]:
    """Have a server answer writes so; how to undo it."""
    if reply == "NOREPLICAS":
        operator.config_set("min-replicas-to-write", 1)
        return "CONFIG", "SET", "min-replicas-to-write", 0
    if reply == "READONLY":
        operator.execute_command("REPLICAOF", "127.0.0.1", "1")
        return "REPLICAOF", "NO", "ONE"
    if reply == "OOM":
        operator.config_set("maxmemory", 1)
        return "CONFIG", "SET", "maxmemory", 0
    operator.execute_command("ACL", "SETUSER", "default", "-set")
    return "ACL", "SETUSER", "default", "+set"
