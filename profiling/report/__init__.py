"""From rows to what a person reads: a table in the terminal, Markdown, an HTML page with plots, and what changed between two runs.

Input is `rows` alone, as `linescan.profiling.read_rows` gives them. Matplotlib is imported when a plot is drawn.
"""

from .comparison import Change, compare_rows
from .comparison_text import comparison_markdown, comparison_table
from .fits import loglog_slope, pareto_front
from .markdown import markdown
from .terminal import terminal_table
from .writing import outdated, write_report

__all__ = [
    "Change",
    "compare_rows",
    "comparison_markdown",
    "comparison_table",
    "loglog_slope",
    "markdown",
    "outdated",
    "pareto_front",
    "terminal_table",
    "write_report",
]
