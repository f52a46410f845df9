"""A config as text: the documented defaults, the reference page, and TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.common import toml_text
from fl_queue.common.redis_url import mask
from fl_queue.common.toml_text import value_text
from fl_queue.config.analysis_catalog import ANALYSES, AnalysisEntry
from fl_queue.config.optimizer_catalog import OPTIMIZERS
from fl_queue.config.run_config import RunConfig
from fl_queue.config.schema import OPEN, SECTIONS
from fl_queue.config.task_catalog import TASKS, TaskEntry
from fl_queue.strategies import STRATEGIES


def render_defaults() -> str:
    """The text of ``config/default.toml``: every field with its meaning, unit and range."""
    lines = [
        "# Every field of a fl-queue config with its default. A config of yours holds overrides only.",
        "# Rendered from fl_queue/config/schema.py by `make docs`.",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"# {kind.doc()}", f"[{section}]"]
        for key, field in kind.options().items():
            lines += [f"# {field.doc}", f"{key} = {value_text(field.default)}"]
    for table in OPEN:
        lines += [
            "",
            f"# Options of the {table} itself; see docs/reference/config.md.",
            f"[{table}]",
        ]
    return "\n".join(lines) + "\n"


def render_reference() -> str:
    """The text of ``docs/reference/config.md``: the same fields, with their environment variables."""
    lines = [
        "# Config",
        "",
        "A config is a TOML file with overrides only. Precedence: the defaults below, the file,",
        "`FLQ_<SECTION>_<KEY>` environment variables, `--set section.key=value`.",
        "Rendered from `fl_queue/config/schema.py` by `make docs`.",
    ]
    for section, kind in SECTIONS.items():
        lines += [
            "",
            f"## [{section}]",
            "",
            kind.doc(),
            "",
            "| field | default | meaning | variable |",
            "|---|---|---|---|",
        ]
        for key, field in kind.options().items():
            variable = f"FLQ_{section.upper()}_{key.upper()}"
            lines.append(
                f"| `{section}.{key}` | `{value_text(field.default)}` | {field.doc} | `{variable}` |"
            )
    lines += _optimizers()
    lines += ["", "## [task]", "", "Options of the task itself. A task of your own takes any."]
    tasks: dict[str, TaskEntry | AnalysisEntry] = {**TASKS, **ANALYSES}
    for name, entry in tasks.items():
        lines += ["", f"### {name}", "", f"{entry.doc[0].upper()}{entry.doc[1:]}."]
        if entry.options:
            lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for key, field in entry.options.items():
            lines.append(f"| `task.{key}` | `{value_text(field.default)}` | {field.doc} |")
    doc = (
        "Options of the strategy itself (`aggregation.strategy`; see docs/reference/strategies.md)."
    )
    lines += ["", "## [strategy]", "", doc, "", "| strategy | option | default | meaning |"]
    lines += ["|---|---|---|---|"]
    for name, strategy in sorted(STRATEGIES.items()):
        for key, field in strategy.OPTIONS.items():
            default = value_text(field.default)
            lines.append(f"| {name} | `strategy.{key}` | `{default}` | {field.doc} |")
    return "\n".join(lines) + "\n"


def _optimizers() -> list[str]:
    """The options of the optimizers."""
    lines = [
        "",
        "## Optimizers",
        "",
        "What `train.optimizer` names, and `train.optimizer_options` holds.",
    ]
    lines += ["", "| optimizer | steps |", "|---|---|"]
    lines += [f"| {name} | {entry.doc} |" for name, entry in OPTIMIZERS.items()]
    lines += ["", "| optimizer | option | default | meaning |", "|---|---|---|---|"]
    return lines + [
        f"| {name} | `{key}` | `{value_text(field.default)}` | {field.doc} |"
        for name, entry in OPTIMIZERS.items()
        for key, field in entry.options.items()
    ]


def masked(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The config as nested dictionaries, passwords in URLs replaced by ``***``."""
    plain = config.to_dict()
    for key in ("url", "blob_url"):
        plain["redis"][key] = mask(plain["redis"][key])
    return plain


def to_toml(config: Mapping[str, Mapping[str, Any]]) -> str:
    """Nested dictionaries as TOML text."""
    return toml_text.dumps(config)
