"""The TOML file of a run: read, checked, shown; and the table of built-in tasks."""

from __future__ import annotations

from fl_queue.common.moved import moved

# Until the next release: ``fl_queue.config`` was the module that is ``loading`` now.
__getattr__ = moved("fl_queue.config", "fl_queue.config.loading", only="load")
