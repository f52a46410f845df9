"""Pipelines that can be ended whatever their server answers."""

from __future__ import annotations

import redis
from redis.client import Pipeline


class EndablePipeline(Pipeline):
    """
    A pipeline that watches nothing once it has ended.

    redis-py sends UNWATCH at the end. Where that was refused as well (NOPERM, LOADING), the error left the ``with``
    block, past the code that handles those of commands: a worker ended with it. The pipeline stayed as it was,
    so that a caller who began again was refused ("Cannot issue a WATCH after a MULTI").
    """

    def reset(self) -> None:  # type: ignore[override]
        """End the transaction, and give the connection back; closed, if the server cannot end it."""
        try:
            super().reset()
        except redis.RedisError:
            if self.connection is not None:
                self.connection.disconnect()
            self.watching = False
            super().reset()
