"""Strategies: the rules that turn accepted updates into the next version. One file each; its docstring has the equations."""

from __future__ import annotations

from fl_queue.common.lazy import lazy
from fl_queue.common.options import Option
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.registry import STRATEGIES, get_strategy, load_strategy

__all__ = ["STRATEGIES", "Option", "Strategy", "get_strategy", "load_strategy"]

__getattr__ = lazy(__name__, {}, renamed={"Field": "Option"})
