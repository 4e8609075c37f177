"""Measures any backbone or segmentor: cost, speed, memory, accuracy, each held against a transformer of its scale; docs/profiler.md.

`profile` and what belongs to it are imported when they are first asked for: they need MMEngine, the single measurements need torch alone.
"""

from importlib import import_module
from typing import Any

from .flops import MacCount, UncountedOperatorError, count_macs
from .fvcore_handles import fvcore_handles
from .memory import peak_memory
from .parameters import ParameterCount, count_parameters
from .progress import progress_bar
from .provenance import measurement_row, provenance, read_rows, write_rows
from .throughput import Throughput, measure_throughput

# Name -> module that has it.
_ON_DEMAND = {
    "Settings": "settings",
    "Subject": "subjects",
    "evaluate": "accuracy",
    "line_up": "lineup",
    "profile": "session",
    "read_accuracy": "accuracy",
    "report": "report",
}

__all__ = [
    "MacCount",
    "ParameterCount",
    "Settings",
    "Subject",
    "Throughput",
    "UncountedOperatorError",
    "count_macs",
    "count_parameters",
    "evaluate",
    "fvcore_handles",
    "line_up",
    "measure_throughput",
    "measurement_row",
    "peak_memory",
    "profile",
    "progress_bar",
    "provenance",
    "read_accuracy",
    "read_rows",
    "report",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_ON_DEMAND[name]}", __name__)
    return module if name == "report" else getattr(module, name)
