"""The report as Markdown: what goes into a README, and report.md beside the plots."""

import re
from collections.abc import Mapping, Sequence

from .conditions import SIZE_NOTE, fixed_conditions, provenance_lines
from .data import Report, Row
from .sections import Section, Table, column_is_numeric, missing, sections
from .summary import summary
from .text import one_line


def markdown(rows: Sequence[Row]) -> str:
    """Tables per section, with conventions, conditions and provenance.

    Args:
        rows: as `linescan.profiling.read_rows` gives them; kinds that are no part of a profile are passed over and named.

    Raises:
        ValueError: no rows, rows of another schema, or rows that lack what their kind must have.
    """
    return document(Report(rows), title=None, figures={})


def document(report: Report, *, title: str | None, figures: Mapping[str, str]) -> str:
    """Markdown with the plots that were drawn: name -> caption, in a file "<name>.png" beside it."""
    parts = [f"# {escaped(title)}"] if title else []
    if sentences := summary(report):
        parts.append("\n".join(f"- {escaped(sentence)}" for sentence in sentences))
    for section in sections(report):
        parts.append(f"## {section.title}")
        parts += [f"![{escaped(figures[name])}]({name}.png)\n\n*{escaped(figures[name])}*" for name in section.figures if name in figures]
        parts += _tables(section)
    parts.append("## Conditions")
    lines = [SIZE_NOTE, *fixed_conditions(report), *provenance_lines(report), *missing(report)]
    parts.append("\n".join(f"- {escaped(line)}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _tables(section: Section) -> list[str]:
    parts = []
    for table in section.tables:
        parts += [f"**{escaped(table.caption)}**"] if table.caption else []
        parts.append(table_text(table))
    return parts + [escaped(note) for note in section.notes]


def table_text(table: Table) -> str:
    """A table with numbers set to the right."""
    lines = [[escaped(column) for column in table.columns]]
    lines.append(["---:" if column_is_numeric(table.rows, i) else "---" for i in range(len(table.columns))])
    lines += [[escaped(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is. Underscores inside a word are left alone: they mean nothing there."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], text)
