"""Measures any backbone or segmentor: multiply-adds, parameters, images per second, and rows that say under which conditions."""

from .flops import MacCount, UncountedOperatorError, count_macs
from .fvcore_handles import fvcore_handles
from .memory import peak_memory
from .parameters import ParameterCount, count_parameters
from .provenance import measurement_row, provenance, read_rows, write_rows
from .throughput import Throughput, measure_throughput

__all__ = [
    "MacCount",
    "ParameterCount",
    "Throughput",
    "UncountedOperatorError",
    "count_macs",
    "count_parameters",
    "fvcore_handles",
    "measure_throughput",
    "measurement_row",
    "peak_memory",
    "provenance",
    "read_rows",
    "write_rows",
]
