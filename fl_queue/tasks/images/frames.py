"""The one picture that is read of a file of several."""

from __future__ import annotations

from fl_queue.tasks.images.settings import refused


def frame_of(count: int, wanted: int) -> int:
    """
    Number of the picture to read, from 0.

    Args:
        count: How many the file has.
        wanted: ``task.frame``; -1: none is named.

    Raises:
        UnusableImage: It has several and none is named, as only the first would be read; or it ends before that one.
    """
    if wanted < 0 and count > 1:
        rule = "write each into a file of its own, or choose one by task.frame"
        raise refused(
            f"holds {count} pictures; {rule}", f"an image file holds several pictures; {rule}"
        )
    if wanted >= count:
        raise refused(
            f"holds {count} pictures, so there is none with the number task.frame = {wanted}; they are counted from 0",
            "an image file has no picture with the number task.frame; they are counted from 0",
        )
    return max(0, wanted)
