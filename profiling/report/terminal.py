"""The table in the terminal: one block per image size and setting."""

import textwrap
from collections.abc import Sequence

from .conditions import fixed_conditions, notes, provenance_lines
from .data import KINDS, OUT_OF_MEMORY, Report, Row, Setting, Size, size_of
from .sections import Cell, column_is_numeric, failure, number, speed_cells
from .summary import summary
from .text import ABSENT, one_line, short_names, shortened, size_text

WIDTH = 140
NAME_WIDTH = 27  # of a model; what the other columns leave of WIDTH
_COLUMNS = (
    "model",
    "role",
    "batch",
    "params\nM",
    "MACs\nG",
    "scans\nG",
    "latency, ms\n(p20 to p80)",
    "images\nper s",
    "speed / baseline\n(p20 to p80)",
    "peak\nMiB",
    "mIoU\n%",
)


def terminal_table(rows: Sequence[Row]) -> str:
    """Aligned text of at most 140 columns: a block per image size and setting, then sentences, conditions and provenance.

    Args:
        rows: as `linescan.profiling.read_rows` gives them; kinds that are no part of a profile are passed over and named.

    Raises:
        ValueError: no rows, rows of another schema, or rows that lack what their kind must have.
    """
    report = Report(rows)
    names = short_names(report.names, width=NAME_WIDTH) if report.names else {}
    parts = [_block(report, size, setting, names) for size, setting in _blocks(report)]
    cut = [wrapped(f"{short} = {one_line(name)}", "  ") for name, short in names.items() if short != one_line(name)]
    if cut:
        parts.append("\n".join(["Names above, in full:", *cut]))
    if sentences := summary(report):
        parts.append("\n".join(wrapped(sentence) for sentence in sentences))
    if lost := _other_failures(report):
        parts.append("\n".join(["Failed:", *lost]))
    below = [*notes(report), *fixed_conditions(report), *provenance_lines(report)]
    if report.other_kinds:
        below.append("rows of other kinds, passed over: " + ", ".join(f"{one_line(k)} ({n})" for k, n in report.other_kinds.items()))
    return "\n\n".join([*parts, "\n".join(wrapped(line) for line in below)]).strip() + "\n"


def _blocks(report: Report) -> list[tuple[Size | None, Setting | None]]:
    """Sizes and settings that were tried; sizes that were counted but not tried; with neither, the models alone."""
    kinds = ("speed", "memory")
    found = [(size, setting) for setting in report.settings(*kinds) for size in report.sizes(setting, *kinds)]
    tried = {size for size, _ in found}
    counted = {size_of(row) for row in report.measured("cost")} - tried
    found += [(size, None) for size in sorted(counted, key=lambda size: size[0] * size[1])]
    return found or ([(None, None)] if report.models or report.accuracy[1] else [])


def _block(report: Report, size: Size | None, setting: Setting | None, names: dict[str, str]) -> str:
    cells = []
    for name in report.ordered:
        cost = report.find("cost", name, size) if size else None
        speed, memory = (report.find(kind, name, size, setting) if setting else None for kind in ("speed", "memory"))
        if size and cost is None and speed is None and memory is None:
            continue
        indent = "  " if report.role(name) != "model" else ""
        parameters = report.models[name]["result"]["parameters"] if name in report.models else None
        counts = cost["result"] if cost and "error" not in cost["result"] else {}
        line = [Cell(indent + names[name]), Cell(report.role(name)), _batch(speed, setting), number(parameters, 1e6)]
        line += [number(counts.get("macs"), 1e9), number(counts.get("scan_ops"), 1e9, digits=3)]
        line += speed_cells(report, speed)[:3] if speed else [Cell(ABSENT)] * 3
        line += [Cell(ABSENT) if speed and memory and "error" in speed["result"] else _peak(memory), number(report.accuracy[1].get(name))]
        cells.append(line)
    title = "Models"
    if size:
        pixels = f"{size_text(size)} pixels" if size[0] == size[1] else f"{size_text(size)} pixels (height x width)"
        title = ", ".join([pixels, report.setting_text(setting) if setting else "not timed"])
    return f"{title}\n{aligned(_COLUMNS, cells, WIDTH)}"


def _batch(speed: Row | None, setting: Setting | None) -> Cell:
    """The batch where it is each model's own; otherwise the title of the block has it."""
    if speed is None or setting is None or setting.batch is not None or "error" in speed["result"]:
        return Cell(ABSENT)
    return number(speed["condition"]["batch"], digits=1)


def _peak(row: Row | None) -> Cell:
    if row is None:
        return Cell(ABSENT)
    return failure(row) if "error" in row["result"] else number(row["result"]["peak_mib"], digits=3)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> str:
    """Text columns, numbers to the right, heads of several lines; empty columns are left out, and the first one is cut to fit `width`."""
    keep = [i for i in range(len(columns)) if i < 1 or any(row[i].text != ABSENT for row in rows)]
    heads = [columns[i].split("\n") for i in keep]
    widths = [max(*map(len, head), *(len(row[i].text) for row in rows), 0) for i, head in zip(keep, heads, strict=True)]
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    right = [column_is_numeric(rows, i) for i in keep]

    def line(texts: Sequence[str]) -> str:
        cells = [shortened(texts[0], widths[0]), *texts[1:]]
        placed = [text.rjust(w) if to_right else text.ljust(w) for text, w, to_right in zip(cells, widths, right, strict=True)]
        return "  ".join(placed).rstrip()

    tall = max(map(len, heads))
    titles = [line([([""] * tall + head)[-tall:][i] for head in heads]) for i in range(tall)]
    return "\n".join([*titles, "  ".join("-" * w for w in widths), *(line([row[i].text for i in keep]) for row in rows)])


def _other_failures(report: Report) -> list[str]:
    """What failed for another reason than memory, or at a step that the blocks do not show."""
    lines = []
    for row in report.of_kind(*KINDS):
        result, condition = row["result"], row["condition"]
        if "error" not in result or (row["kind"] in ("speed", "memory") and result["error"] == OUT_OF_MEMORY):
            continue
        where = [size_text(size_of(row))] if size_of(row) else []
        where += [str(condition[key]) for key in ("mode", "dtype", "step") if condition.get(key)]
        words = ": ".join(one_line(result[key]) for key in ("error", "message") if result.get(key))
        lines.append(wrapped(f"{one_line(row['name'])} ({', '.join(where) or row['kind']}): {words}", "  "))
    return lines


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
