"""
The one importer of Hugging Face's packages: offline, without progress bars, and only when they are used.

Nothing is downloaded, and no code of a model's folder is run: models and tokenizers come from local folders.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError
from fl_queue.tables import arrow

#: Read by huggingface_hub and datasets when they are imported.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
#: Arguments of every ``from_pretrained``.
LOCAL = {"local_files_only": True, "trust_remote_code": False}


@cache
def transformers() -> Any:
    """
    The package ``transformers``.

    Raises:
        ConfigError: It is not installed; names the extra.
    """

    def load() -> Any:
        import transformers

        return transformers

    found = _imported(load)
    # A task's own module may have imported it before.
    _hub().HF_HUB_OFFLINE = True
    found.utils.logging.disable_progress_bar()
    # Its advice on configs and kernels is printed at each build of a model.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return found


def _hub() -> Any:
    """The constants of ``huggingface_hub``, which the others ask whether they may use the network."""

    def load() -> Any:
        import huggingface_hub.constants

        return huggingface_hub.constants

    return _imported(load)


@cache
def field_error() -> type[Exception]:
    """The error of a config's field with a value of another kind, which is no ``ValueError``."""

    def load() -> Any:
        import huggingface_hub.errors

        return huggingface_hub.errors

    found: type[Exception] = _imported(load).StrictDataclassError
    return found


@cache
def peft() -> Any:
    """The package ``peft``; raises as ``transformers``."""
    transformers()

    def load() -> Any:
        import peft

        return peft

    return _imported(load)


@cache
def datasets() -> Any:
    """The package ``datasets``; raises as ``transformers``."""

    def load() -> Any:
        import datasets

        return datasets

    found = _imported(load)
    _hub().HF_HUB_OFFLINE = found.config.HF_HUB_OFFLINE = True
    found.disable_progress_bars()
    return found


@cache
def pyarrow() -> Any:
    """The package ``pyarrow``, which reads tables; raises as ``transformers``."""
    return _imported(arrow.pyarrow)


@cache
def pyarrow_part(name: str) -> Any:
    """A module of pyarrow: ``csv``, ``json`` or ``parquet``; raises as ``transformers``."""
    return _imported(lambda: arrow.part(name))


@cache
def accelerate_state() -> Any:
    """The module ``accelerate.state``; raises as ``transformers``."""

    def load() -> Any:
        import accelerate.state

        return accelerate.state

    return _imported(load)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings that these packages raise at each build of a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _imported(load: Callable[[], Any]) -> Any:
    """Import a package offline. Raises ConfigError if it, or one that it needs, is missing."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(_OFFLINE)
    try:
        with quiet():
            return load()
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "run.task",
            f"needs transformers, peft, accelerate and datasets ({exc}); {how_to_install('hf')}",
            public=f"needs transformers, peft, accelerate and datasets; {how_to_install('hf')}",
        ) from exc
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
