"""Tables of README and docs, written from committed rows.

A page names the table and the results files in a comment, and the table stands below it:

    <!-- table: far_context results/shapes/far_context_192x192_cpu.json -->
    | ...
    <!-- end of table -->

`refresh` writes all tables of a page anew (tools/make_tables.py); a test fails where a page and its rows disagree.
A new kind of table is a function from rows to Markdown with `@table`, in a module that is imported here.
"""

from .base import TABLES, Row, digits, lines, spread, table
from .comparisons import comparison, far_context, summary
from .configs import classifier_configs, configs
from .costs import macs, operators
from .kernels import kernel_growth, kernel_ratios
from .names import MIXERS, mixer_of, shown
from .overlap import overlap
from .pages import refresh
from .parameters import backbones, parameters
from .profiles import Measured, by_size, side_by_side, tradeoffs, training_steps
from .seeds import Costs, Trained, seeds, seeds_by_class

__all__ = [
    "MIXERS",
    "TABLES",
    "Costs",
    "Measured",
    "Row",
    "Trained",
    "backbones",
    "by_size",
    "classifier_configs",
    "comparison",
    "configs",
    "digits",
    "far_context",
    "kernel_growth",
    "kernel_ratios",
    "lines",
    "macs",
    "mixer_of",
    "operators",
    "overlap",
    "parameters",
    "refresh",
    "seeds",
    "seeds_by_class",
    "shown",
    "side_by_side",
    "spread",
    "summary",
    "table",
    "tradeoffs",
    "training_steps",
]
