"""
What is fuzzed: each target decodes bytes from anywhere, and lets nothing out but documented errors.

The aggregator's, worker's and readers' own code, in their order. No Redis here; ``run`` drives these with
atheris, ``test_cases`` with the seeds and with what was found.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import redis
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer

from fl_queue import metrics
from fl_queue.aggregation import exact_sum, group_sum, scales
from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.config.loading import load
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator import verdicts
from fl_queue.errors import ConfigError, JobRefused, MessageError
from fl_queue.protocol import identifiers, message, parties, signing, tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.events import event_of
from fl_queue.protocol.header import GroupMember, Header, packed, unpacked
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.parties import Parties
from fl_queue.protocol.records import Enrolment, Receipt, RoundRecord
from fl_queue.protocol.signing import new_key, seal
from fl_queue.reporting import live_view, run_status
from fl_queue.secure.bodies import ConfirmBody, KeysBody, UnmaskBody, UpdateTrailer
from fl_queue.secure.records import Confirmations, Inbox, Roster, SignedRunKey, Survivors
from fl_queue.secure.ring import RingLayout, RingSum
from fl_queue.store import RoundState, as_text, parse_round_state, parse_run_state
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import TRAIN, FLJob
from tests.support import secure_records

CAP = 1 << 16
#: Of tensors of 300 and fewer elements: more than a block of int8.
MANIFEST = Manifest(
    (
        TensorSpec("bias", (3,), "parameter"),
        TensorSpec("mean", (2,), "float_buffer"),
        TensorSpec("steps", (), "integer_buffer"),
        TensorSpec("weight", (10, 30), "parameter"),
    )
)
COHORT = ("sim-1", "sim-2")
CONFIG: RunConfig = load(
    "mnist-3v7", ("clients.kind=simulation", "clients.count=2", "round.cohort=2"), {}
)
SCALES = scales.choose_scales(2, 1 << 20, {"parameter": 64.0, "float_buffer": 65536.0})
ROUND = RoundState(
    number=1, state="open", purpose="train", cohort=COHORT, eligible=COHORT, quorum=2,
    deadline_s=60.0, grace_s=5.0, elapsed_s=0.0, quorum_at_s=None, opened_at=0.0, base_version=0,
    base_digest="0" * 64, fence=1, data_server="", w_max=1 << 20,
    scales={kind: list(scale) for kind, scale in SCALES.items()}, segment=0, reason="", groups=1,
)  # fmt: skip
JOB = "site-1_demo-3f2a9c_3_ab12"
#: Never connected to: a job's hash is given.
_NOWHERE = redis.Redis(unix_socket_path="/nowhere")


@dataclass(frozen=True)
class Target:
    """
    Args:
        decode: Does with bytes what the product does; lets only ``refusals`` out.
        seeds: Real inputs, from which the fuzzer starts.
        refusals: The documented errors.
    """

    decode: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    refusals: tuple[type[Exception], ...] = (MessageError,)

    def __call__(self, data: bytes) -> bool:
        """Whether the bytes were accepted; any error but a documented one comes through."""
        try:
            self.decode(data)
        except self.refusals:
            return False
        return True


# --- real elements


def body() -> bytearray:
    draw = np.random.default_rng(1)
    return tensor_layout.encode_body(
        MANIFEST,
        {
            "bias": draw.standard_normal(3, np.float32),
            "mean": draw.standard_normal(2, np.float32),
            "steps": np.array(7, np.int64),
            "weight": draw.standard_normal((10, 30), np.float32),
        },
    )


def header(encoding: str = "float32", content: bytes | bytearray | None = None) -> Header:
    """The header of an update in a codec."""
    content = body() if content is None else content
    return Header(
        kind="update",
        run="demo-3f2a9c",
        round=1,
        client="sim-1",
        base_digest="0" * 64,
        token="0123456789abcdef",
        num_examples=600,
        metrics={"num_examples": 60, "loss_sum": 1.5, "confusion": [[3, 1], [2, 4]]},
        train_metrics={"num_examples": 600, "loss_sum": 2.5},
        environment={"torch": "2.14", "threads": 2},
        train_s=0.5,
        tensors=codec.entries(encoding, MANIFEST),
        codec=encoding,
        body_bytes=len(content),
        body_digest=tensor_layout.body_digest(content),
    )


def encoded(encoding: str) -> bytes:
    return bytes(codec.encode(encoding, MANIFEST, body(), 1))


def elements() -> list[bytes]:
    """One of every kind, and signed."""
    whole = body()
    updates = [
        (header(name, content), content) for name in codec.CODECS for content in [encoded(name)]
    ]
    plain = header()
    bare = replace(plain, tensors=(), body_bytes=0, body_digest=tensor_layout.body_digest(b""))
    made = [message.pack(one, content) for one, content in updates]
    made += [
        message.pack(replace(plain, chunk_bytes=256), None),
        message.pack(replace(bare, kind="evaluation"), None),
        message.pack(replace(bare, kind="failure", reason="out of memory"), None),
        message.pack(replace(plain, kind="model", manifest=MANIFEST.to_json()), whole),
        message.pack(*group_element()),
    ]
    return [*made, seal(made[0], "sim-1", new_key()[0])]


@cache
def group_element() -> tuple[Header, bytes]:
    total = UpdateMerger.of_round(MANIFEST, CONFIG, ROUND.scales, ROUND.w_max)
    made = group_sum.GroupSum(MANIFEST, CONFIG, ROUND)
    for client in COHORT:
        made.take(replace(header(), client=client), body())
    whole, content = made.element(replace(header(), client="group-0"))
    group_sum.check_layout(whole, total)
    return whole, bytes(content)


# --- decoders


def decode_element(data: bytes) -> None:
    """As gate and intake do, up to the numbers."""
    sealed = signing.opened(data)
    element = data if sealed is None else sealed.element
    found, content = message.unpack(element, max_body_bytes=CAP)
    check_header(found)
    if found.kind in ("evaluation", "failure") or found.chunk_bytes:
        return
    if found.kind == "group":
        message.check_tensors(found, exact_sum.sum_manifest(MANIFEST))
    elif found.kind == "model":
        message.check_tensors(found, Manifest.from_json(found.manifest))
    else:
        codec.check_tensors(found.codec, found, MANIFEST)
    message.check_body(found, content)


def check_header(found: Header) -> None:
    """What is done with a header alone; one that was accepted can be packed again, the same."""
    again = packed(found)
    assert packed(unpacked(memoryview(again))) == again  # Not the values: NaN is not itself.
    for own, status, reason in group_sum.headers(found):
        metrics.check(own.metrics)
        metrics.check(own.train_metrics)
        Receipt.from_json(verdicts.make_receipt(own, status, reason).to_json())
    if found.kind == "group":
        group_sum.check(found, ROUND, CONFIG)


def decode_header(data: bytes) -> None:
    check_header(unpacked(memoryview(data)))


def decode_envelope(data: bytes) -> None:
    sealed = signing.opened(data)
    if sealed is not None:
        signing.is_signed_by(sealed, _PUBLIC)
        message.unpack(sealed.element, max_body_bytes=CAP)


def decode_body(data: bytes) -> None:
    """Bodies of the right length, whatever is in them: codec and exact sum, added and taken out."""
    name = codec.CODECS[data[0] % len(codec.CODECS)] if data else "float32"
    size = codec.encoded_nbytes(name, MANIFEST)
    content = (data[1:] + bytes(size))[:size]
    total = ExactSum(MANIFEST, SCALES, 1 << 20)
    before = [piece.tobytes() for piece in total.pieces()]
    try:
        total.add_blocks(codec.DecodedBlocks(name, MANIFEST, content), 600, {})
    except MessageError:
        assert [piece.tobytes() for piece in total.pieces()] == before
        raise


def decode_group_body(data: bytes) -> None:
    whole, content = group_element()
    given = (data + content[len(data) :])[: len(content)]
    merge = UpdateMerger.of_round(MANIFEST, CONFIG, ROUND.scales, ROUND.w_max)
    group_sum.add(replace(whole, body_digest=tensor_layout.body_digest(given)), given, merge)


def decode_manifest(data: bytes) -> None:
    found = Manifest.from_json(data)
    assert Manifest.from_json(found.to_json().encode()) == found
    tensor_layout.entries(found)


_RECORDS: dict[str, Callable[[bytes], Any]] = {
    "receipt": Receipt.from_json,
    "round": RoundRecord.from_json,
    "enrolment": Enrolment.from_json,
}


def decode_record(data: bytes) -> None:
    name = sorted(_RECORDS)[data[0] % len(_RECORDS)] if data else "receipt"
    found = _RECORDS[name](data[1:])
    assert _RECORDS[name](found.to_json().encode()) == found


def decode_ticket(data: bytes) -> None:
    from fl_queue.common.safe_json import loads

    found = JobTicket.from_dict(loads(data, "a ticket"))
    assert JobTicket.from_dict(asdict(found)) == found
    found.next_attempt()


def decode_event(data: bytes) -> None:
    """Any entry becomes an event that is stored and shown."""
    event = event_of({b"event": data})
    json.dumps(event, allow_nan=False).encode()
    run_status._doing(event)
    scene = live_view.RunSnapshot(None, progress={"a": event})
    live_view._client_cells(scene, "a")


def decode_state(data: bytes) -> None:
    """The hash of a run or of a round: fields and values between zero bytes, beside those of a real one."""
    parts = data[1:].split(b"\0")
    raw = dict(zip(parts[::2], parts[1::2], strict=False))
    fields = as_text(raw)
    if data[:1] == b"\0":
        found = parse_run_state("demo-3f2a9c", {**RUN_HASH, **fields})
        assert all(map(identifiers.is_name, (found.name, *found.left_out)))
        assert all(map(identifiers.is_run_id, (found.run_id, *found.restored_from)))
        return
    current = parse_round_state(1, {**ROUND_HASH, **fields})
    assert all(map(identifiers.is_name, current.makers))


RUN_HASH = {
    "name": "demo", "state": "training", "round": "1", "rounds_wanted": "3", "created_at": "1.5",
    "population": '["sim-1"]', "restored_from": '["demo-000000"]', "left_out": '{"a": "why"}',
}  # fmt: skip
ROUND_HASH = {
    "state": "open", "purpose": "train", "cohort": '["sim-1"]', "eligible": "[]", "quorum": "1", "deadline_s": "60",
    "grace_s": "5", "opened_at": "1", "base_version": "0", "base_digest": "0" * 64, "w_max": "1", "scales": "{}",
    "segment": "0",
}  # fmt: skip


def decode_job(data: bytes) -> None:
    """A job's hash: fields and values between zero bytes; data as it is, or compressed."""
    parts = data.split(b"\0")
    fields: dict[bytes, bytes] = {**HASH, **dict(zip(parts[::2], parts[1::2], strict=False))}
    if b"call" in fields:
        fields[b"data"] = zlib.compress(fields.pop(b"call"))
    job = FLJob(JOB, connection=_NOWHERE, serializer=JSONSerializer)
    job.restore(fields)
    assert job.func_name == TRAIN or job.func_name.startswith("workers.client.")
    assert (job.args[0], job.args[1]) == ("demo-3f2a9c", 3)
    assert job.kwargs == {}
    assert job.success_callback is None


_SECURE_RECORDS = (Confirmations, Inbox, Roster, Survivors)


def decode_secure_record(data: bytes) -> None:
    """A record of a secure round, in its one form."""
    kind = _SECURE_RECORDS[data[0] % len(_SECURE_RECORDS)] if data else Roster
    assert kind.from_bytes(data[1:]).to_bytes() == data[1:]


def decode_parties(data: bytes) -> None:
    """A site's file of peers."""
    found = parties.parse(data, "parties.toml")
    assert parties.parse(found.to_toml().encode(), "parties.toml") == found


def decode_run_key(data: bytes) -> None:
    found = SignedRunKey.from_json(data)
    assert SignedRunKey.from_json(found.to_json()) == found


_SECURE_BODIES: tuple[Callable[[bytes], Any], ...] = (
    lambda body: KeysBody.from_bytes(body, 2),
    lambda body: UpdateTrailer.from_bytes(body, 2),
    ConfirmBody.from_bytes,
    lambda body: UnmaskBody.from_bytes(body, 3),
)


def decode_secure_body(data: bytes) -> None:
    """A body of an element of a secure round, of a client with two neighbours."""
    read = _SECURE_BODIES[data[0] % len(_SECURE_BODIES)] if data else ConfirmBody.from_bytes
    assert read(data[1:]).to_bytes() == data[1:]


def decode_masked_vector(data: bytes) -> None:
    """A vector of each ring: any bytes of the right length are added."""
    layout = RingLayout(MANIFEST, SCALES, 1 << 20, _RINGS[data[0] % len(_RINGS)] if data else 64)
    RingSum(layout).add(data[1:])


_RINGS = (16, 20, 24, 32, 64)


CALL = json.dumps([TRAIN, None, ["demo-3f2a9c", 3], {}]).encode()
HASH: Mapping[bytes, bytes] = {
    b"data": zlib.compress(CALL),
    b"origin": b"flq-client-site-1",
    b"status": b"queued",
    b"timeout": b"60",
    b"created_at": b"2026-01-01T00:00:00.000000Z",
    b"enqueued_at": b"2026-01-01T00:00:00.000000Z",
}
_PUBLIC = new_key()[1]


# --- seeds


def _headers() -> list[bytes]:
    found = []
    for element in elements()[:-1]:
        size = int.from_bytes(element[8:12], "little")
        found.append(element[12 : 12 + size])
    return found


def _records() -> list[bytes]:
    receipt = verdicts.make_receipt(header(), "received", "")
    ended = RoundRecord(
        1, "train", "committed", "2 of 2 updates in", 0, "0" * 64, 1, "1" * 64, list(COHORT),
        list(COHORT), 2, {"sim-1": "2" * 64}, {"sim-1": 600}, scales={"parameter": [31, 64.0]},
    )  # fmt: skip
    made = {"receipt": receipt, "round": ended, "enrolment": Enrolment(_PUBLIC, 100, 1.5)}
    return [
        bytes([index]) + made[name].to_json().encode() for index, name in enumerate(sorted(made))
    ]


def _secure_records() -> list[bytes]:
    return [
        bytes([_SECURE_RECORDS.index(type(made))]) + made.to_bytes()
        for made in secure_records.RECORDS
    ]


def _secure_bodies() -> list[bytes]:
    sizes = (KeysBody.nbytes(2), UpdateTrailer.nbytes(2), 64, UnmaskBody.nbytes(3))
    return [bytes([index]) + bytes(size) for index, size in enumerate(sizes)]


def _parties() -> list[bytes]:
    return [Parties({"hospital-a": _PUBLIC, "hospital-b": new_key()[1]}).to_toml().encode()]


def _masked_vectors() -> list[bytes]:
    layouts = [RingLayout(MANIFEST, SCALES, 1 << 20, bits) for bits in _RINGS]
    return [bytes([index]) + bytes(made.nbytes) for index, made in enumerate(layouts)]


def _events() -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"event": "training", "run": "demo-3f2a9c", "round": 1, "epochs": 2},
        {"event": "epoch", "run": "demo-3f2a9c", "round": 1, "epoch": 1, "epochs": 2, "accuracy": 0.5, "loss": 1.0},
        {"event": "job_refused", "job": JOB, "reason": "methods are not run", "by": "site-1_ab"},
    ]  # fmt: skip
    return [json.dumps(event).encode() for event in events]


def _tickets() -> list[bytes]:
    ticket = JobTicket("site-1", TRAIN, "flq-client-site-1", "demo-3f2a9c", 3, 60)
    return [ticket.to_json().encode()]


def _jobs() -> list[bytes]:
    fields = b"\0".join(part for pair in list(HASH.items())[1:] for part in pair)
    return [fields, b"call\0" + CALL, b"call\0" + CALL + b"\0success_callback_name\0os.system"]


def _states() -> list[bytes]:
    return [
        bytes([index]) + "\0".join(part for pair in fields.items() for part in pair).encode()
        for index, fields in enumerate((RUN_HASH, ROUND_HASH))
    ]


TARGETS: dict[str, Target] = {
    "element": Target(decode_element, elements),
    "header": Target(decode_header, _headers),
    "envelope": Target(decode_envelope, lambda: elements()[-1:]),
    "body": Target(
        decode_body,
        lambda: [bytes([index]) + encoded(name) for index, name in enumerate(codec.CODECS)],
    ),
    "group-body": Target(decode_group_body, lambda: [group_element()[1]]),
    "manifest": Target(decode_manifest, lambda: [MANIFEST.to_json().encode()]),
    "record": Target(decode_record, _records),
    "ticket": Target(decode_ticket, _tickets),
    "event": Target(decode_event, _events),
    "state": Target(decode_state, _states),
    "secure-record": Target(decode_secure_record, _secure_records),
    "secure-body": Target(decode_secure_body, _secure_bodies),
    "parties": Target(decode_parties, _parties, (ConfigError,)),
    "run-key": Target(
        decode_run_key, lambda: [SignedRunKey(bytes(32), bytes(64)).to_json().encode()]
    ),
    "masked-vector": Target(decode_masked_vector, _masked_vectors),
    "job": Target(decode_job, _jobs, (JobRefused, NoSuchJobError)),
}
#: Words of the formats, which a fuzzer would be long in finding.
WORDS = sorted(
    {*Header.__dataclass_fields__, *GroupMember.__dataclass_fields__, *Receipt.__dataclass_fields__}
    | {*RoundRecord.__dataclass_fields__, *Enrolment.__dataclass_fields__, *JobTicket.__dataclass_fields__}
    | {"epoch", "epochs", "accuracy", "loss_sum", "confusion", "score_histograms", "int8x256", "bfloat16"}
    | {"1e999", "NaN", "null", "true", "-1", "99999999999999999999", "[[[[", r"\\ud800", r"\xc2\xb2"}
    | {"context", "parties", "survivors", "roster", "signatures", "boxes", "kind", "key", "self", "reader"}
    | {"success_callback_name", "webhooks", "call", "FLQ1", "FLQS", "group-0", "update", "model", "failure"}
)  # fmt: skip
