"""The errors that a command or a job ends with."""

from __future__ import annotations

import pickle

import pytest

from fl_queue import errors


def test_the_old_name_of_a_message_error_still_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match="BlobError is fl_queue.errors.MessageError now"):
        assert errors.BlobError is errors.MessageError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ClientNameTaken("hospital-a", "pid 7"), "client hospital-a: is served by another"),
        (errors.CheckpointError("/disk/x", "is missing"), "checkpoint /disk/x: is missing"),
        (errors.ChunksMissing("ab", 3), "chunk 3 of ab is not on the data server"),
        (errors.ChunksMissing("ab", None), "the manifest of ab is not on the data server"),
        (errors.DigestMismatch("ab"), "the chunks of ab have another digest"),
        (errors.ServerStartError("/state", "died"), "/state: died"),
    ],
)
def test_an_error_names_its_cause_and_survives_a_process_boundary(
    error: errors.FLQueueError, text: str
) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert str(error).startswith(text)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_what_can_be_asked_for_again_is_no_malformed_message() -> None:
    for kind in (errors.ChunksMissing, errors.DigestMismatch):
        assert issubclass(kind, errors.ContentMissing)
        assert not issubclass(kind, errors.MessageError)
