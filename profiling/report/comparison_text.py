"""A comparison of two runs, for the terminal and as Markdown."""

from collections import Counter
from collections.abc import Iterable

from .comparison import ACCURACY_TOLERANCE, MEMORY_TOLERANCE, MEMORY_TOLERANCE_MIB, NOISE, SAME, UNKNOWN, Change
from .markdown import escaped, table_text
from .sections import Cell, Table
from .terminal import NAME_WIDTH, WIDTH, aligned, wrapped
from .text import ABSENT, one_line, scaled, short_names, significant, size_text

_UNITS = {"parameters": 1e6, "trainable": 1e6, "live": 1e6, "macs": 1e9, "scan_ops": 1e9, "bytes_moved": 1e9}
_TITLES = {
    "parameters": "parameters, M",
    "trainable": "trainable, M",
    "live": "live, M",
    "macs": "MACs, G",
    "scan_ops": "scan operations, G",
    "bytes_moved": "bytes moved, G",
    "latency_ms": "latency, ms",
    "ratio": "ratio",
    "peak_mib": "peak, MiB",
}
COLUMNS = ("model", "condition", "quantity", "before", "after", "change", "noise", "verdict")
RULE = (
    "Latency and ratio: noise where the intervals from the 20th to the 80th percentile overlap, or where the change is below "
    "sqrt(h_before^2 + h_after^2), h half the interval over the median; one round has no spread. They are spreads of passes within a run: "
    "what moves a whole run (clock, other work on the machine) is not in them, so trust the ratios more. "
    f"Memory: {MEMORY_TOLERANCE_MIB:g} MiB or {100 * MEMORY_TOLERANCE:g} %, since pages and segments are 2 MiB. "
    f"Accuracy: {ACCURACY_TOLERANCE:g} points. Counts are exact."
)
WARNING = "NO COMPARISON OF CODE: the two runs were made under different conditions."


def comparison_table(changes: Iterable[Change]) -> str:
    """Aligned text of at most 140 columns: what differs in the conditions, then what changed, then what did not."""
    changes = list(changes)
    parts = []
    if warnings := _warnings(changes):
        parts.append("\n".join(["!" * 80, WARNING, *(wrapped(line, "  ") for line in warnings), "!" * 80]))
    if shown := _shown(changes):
        names = short_names(list(dict.fromkeys(change.name for change in shown)), width=NAME_WIDTH)
        parts.append(aligned(COLUMNS, [[Cell(names[change.name]), *_cells(change)[1:]] for change in shown], WIDTH))
        cut = [wrapped(f"{short} = {one_line(name)}", "  ") for name, short in names.items() if short != one_line(name)]
        parts += ["\n".join(["Names above, in full:", *cut])] if cut else []
    return "\n\n".join([*parts, wrapped(_counted(changes)), wrapped(RULE)]) + "\n"


def comparison_markdown(changes: Iterable[Change]) -> str:
    """The same as Markdown."""
    changes = list(changes)
    parts = []
    if warnings := _warnings(changes):
        parts.append("\n".join([f"> **{WARNING}**", *(f">\n> - {escaped(line)}" for line in warnings)]))
    if shown := _shown(changes):
        parts.append(table_text(Table("", COLUMNS, [_cells(change) for change in shown])))
    return "\n\n".join([*parts, escaped(_counted(changes)), escaped(RULE)]) + "\n"


def _warnings(changes: list[Change]) -> list[str]:
    found = [change for change in changes if change.kind == "provenance"]
    return [f"{change.name}: before {one_line(change.before)}; after {one_line(change.after)}" for change in found]


def _shown(changes: list[Change]) -> list[Change]:
    """What changed first, then errors, noise, and what only one run has; counts that are the same are summed up below."""

    def rank(change: Change) -> int:
        if change.quantity in ("error", "row"):
            return 1 if change.quantity == "error" else 3
        return 2 if change.verdict in (NOISE, UNKNOWN) else 0

    return sorted((change for change in changes if change.kind != "provenance" and change.verdict != SAME), key=rank)


def _counted(changes: list[Change]) -> str:
    verdicts = Counter(change.verdict for change in changes if change.kind != "provenance")
    if not verdicts:
        return "Nothing to compare."
    quiet = sum(verdicts[verdict] for verdict in (SAME, NOISE))
    words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    return f"{sum(verdicts.values())} quantities: {words}." + (" Nothing changed." if quiet == sum(verdicts.values()) else "")


def _cells(change: Change) -> list[Cell]:
    condition = change.condition
    where = [size_text(condition["size"])] if condition.get("size") else []
    where += [str(condition[key]).removesuffix(" step") for key in ("mode", "dtype", "split", "device", "step") if condition.get(key)]
    where += [f"batch {condition['batch']}"] if condition.get("batch") and change.kind != "cost" else []
    title = _TITLES.get(change.quantity, change.quantity)
    if change.quantity in ("row", "error"):
        title = change.kind
    values = [_value(change.quantity, value) for value in (change.before, change.after)]
    shares = [
        Cell(ABSENT if share is None else f"{100 * share:{sign}.1f} %", share) for share, sign in ((change.change, "+"), (change.noise, ""))
    ]
    return [Cell(one_line(change.name)), Cell(one_line(", ".join(where)) or ABSENT), Cell(title), *values, *shares, Cell(change.verdict)]


def _value(quantity: str, value: float | str | None) -> Cell:
    if value is None or isinstance(value, str):
        return Cell(ABSENT if value is None else one_line(value))
    if quantity in _UNITS:
        return Cell(scaled(value, _UNITS[quantity], 5), value)
    return Cell(significant(value, 4), value)
