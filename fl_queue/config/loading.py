"""
Read a config from TOML.

Precedence: the defaults in ``schema`` < the file < ``FLQ_<SECTION>_<KEY>`` environment variables <
``--set section.key=value``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_queue.common.options import unknown_key
from fl_queue.common.spelling import nearest
from fl_queue.config.run_config import RunConfig
from fl_queue.config.schema import TABLES
from fl_queue.errors import ConfigError


def load(
    source: str | None,
    overrides: tuple[str, ...] = (),
    environ: Mapping[str, str] = os.environ,
) -> RunConfig:
    """
    Read a config: a TOML file, a preset (``demo``, ``mnist-2nn``), or the defaults.

    Args:
        source: Path of a file or name of a preset; None for the defaults alone.
        overrides: ``section.key=value`` texts, values as in TOML (bare words are text).
        environ: Environment with ``FLQ_<SECTION>_<KEY>`` variables.

    Raises:
        ConfigError: The file cannot be read, or a field cannot be used.
    """
    return RunConfig.from_dict(read_tables(source, overrides, environ))


def read_tables(
    source: str | None,
    overrides: tuple[str, ...] = (),
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """
    Read the tables of a config as they are given, without a check of their fields. Args: as of ``load``.

    Raises:
        ConfigError: The file cannot be read, or an override is none.
    """
    raw = _read(source) if source else {}
    for name, text in sorted(environ.items()):
        match = re.fullmatch(r"FLQ_([A-Z]+)_(\w+)", name)
        if match and match[1].lower() in TABLES:
            _assign(raw, match[1].lower(), match[2].lower(), text)
    for override in overrides:
        match = re.fullmatch(r"([a-z]+)\.([A-Za-z_0-9]+)=(.*)", override, re.DOTALL)
        if not match:
            raise ConfigError(
                "--set", f"{override!r} is not section.key=value, such as train.epochs=5"
            )
        _assign(raw, match[1], match[2], match[3])
    return raw


def preset_folder() -> Path:
    """Folder of the presets: ``config/`` of a checkout, ``presets/`` of an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "config"


def preset_names() -> list[str]:
    """Names of the presets, which ``load`` takes in place of a path."""
    return sorted(file.stem for file in preset_folder().glob("*.toml") if file.stem != "default")


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    try:
        if path.suffix != ".toml" and not path.exists():
            return tomllib.loads(_preset(source))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError("CONFIG", f"{source} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("CONFIG", f"{source} is not UTF-8 text") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("CONFIG", f"{source} is not valid TOML: {exc}") from exc


def _preset(name: str) -> str:
    if name not in preset_names():
        raise ConfigError(
            "CONFIG",
            f"{name} is neither a file nor a shipped config{nearest(name, preset_names())} "
            f"({', '.join(preset_names())})",
        )
    return (preset_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _assign(raw: dict[str, Any], section: str, key: str, text: str) -> None:
    if section not in TABLES:
        raise unknown_key(section, TABLES)
    if not isinstance(raw.setdefault(section, {}), dict):
        raise ConfigError(section, f"is a table; write [{section}] and its fields below it")
    raw[section][key] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
