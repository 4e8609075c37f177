"""The content of a report, as plain tables that the terminal, Markdown and HTML write each in its own way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .conditions import FLOPS_NOTE, MEMORY_NOTE, PROJECTION_NOTE, RATIO_NOTE, scan_note
from .data import KINDS, OUT_OF_MEMORY, Report, Row, Setting, Size, mean_of, setting_of, size_of
from .style import in_usual_order
from .text import ABSENT, breakdown, listed, one_line, scaled, significant, size_text, spread

MIB = 2**20
SLOWEST = 6  # operators named for each model; the rows have more


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and the number to sort by (None: sorted as text)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """`rows` hold one cell per column; `caption` may be empty."""

    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Section:
    """`key` is the anchor; `figures` names the plots that belong here, drawn or not; `notes` are conventions, one sentence or more each."""

    key: str
    title: str
    tables: list[Table]
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sections(report: Report) -> list[Section]:
    """Every section that has rows, in the order of the page."""
    made = [
        models(report),
        cost(report),
        speed(report),
        memory(report),
        accuracy(report),
        operators(report),
        projections(report),
        failures(report),
    ]
    return [section for section in made if section.tables]


def missing(report: Report) -> list[str]:
    """What was not measured, a sentence each."""
    titles = {
        "model": "parameters",
        "cost": "multiply-adds",
        "speed": "latency",
        "memory": "peak memory",
        "operators": "time by operator",
        "accuracy": "accuracy",
        "projection": "estimates for other devices",
    }
    absent = [title for kind, title in titles.items() if not report.of_kind(kind)]
    lines = [f"Not measured in these rows: {', '.join(absent)}."] if absent else []
    if report.other_kinds:
        kinds = ", ".join(f"{one_line(kind)} ({count})" for kind, count in report.other_kinds.items())
        lines.append(f"Rows of other kinds, passed over: {kinds}.")
    return lines


def name_cell(report: Report, name: str) -> Cell:
    role = report.role(name)
    return Cell(one_line(name) + (f" ({role})" if role != "model" else ""))


def number(value: float | None, unit: float = 1, digits: int = 4) -> Cell:
    return Cell(scaled(value, unit, digits), value)


def failure(row: Row) -> Cell:
    """ "out of memory" in place of a number, or "failed" for what the section of failures explains."""
    return Cell(OUT_OF_MEMORY if row["result"]["error"] == OUT_OF_MEMORY else "failed")


def models(report: Report) -> Section:
    rows, by_type = [], {}
    for name in report.sorted(report.models):
        condition, result = report.models[name]["condition"], report.models[name]["result"]
        held = [one_line(other) for other in report.of(name)]
        held = listed(held if len(held) < 5 else [*held[:3], f"{len(held) - 3} more"])
        why = "; ".join(filter(None, [f"of {held}" if held else "", one_line(condition.get("reason") or "")]))
        counts = [number(result.get(key), 1e6) for key in ("parameters", "trainable", "live")]
        stages = Cell(breakdown(result.get("parameters_by_stage") or {}, 1e6) or ABSENT)
        rows.append([Cell(one_line(name)), Cell(report.role(name)), *counts, stages, Cell(why or ABSENT)])
        by_type[name] = result.get("parameters_by_type") or {}
    columns = ("model", "role", "parameters, M", "trainable, M", "live, M", "by stage, M", "why")
    tables = [Table("", columns, rows)] if rows else []
    note = "Live parameters are reached by the forward pass; the rest costs memory and does nothing."
    tables += _matrix(report, "Parameters by type of module, M", by_type, 1e6)
    return Section("models", "Models", tables, ("parameters",), (note,))


def _matrix(report: Report, caption: str, values: Mapping[str, Mapping[str, float]], unit: float) -> list[Table]:
    """Models down, parts across; no table where no model has parts."""
    parts = list(dict.fromkeys(part for name in values for part in values[name]))
    if not parts:
        return []
    rows = [[name_cell(report, name), *(number(values[name].get(part), unit, 3) for part in parts)] for name in report.sorted(values)]
    return [Table(caption, ("model", *(one_line(part) for part in parts)), rows)]


def ordered_rows(report: Report, rows: Iterable[Row]) -> list[Row]:
    """By size and within it in the order of the models; of repeated measurements the last."""
    newest = {(size_of(row), row["name"]): row for row in rows}
    return sorted(newest.values(), key=lambda row: (*_area(size_of(row)), report.ordered.index(row["name"])))


def _area(size: Size | None) -> tuple[int, Size]:
    return (size[0] * size[1], size) if size else (0, (0, 0))


def relative(report: Report, kind: str, row: Row, key: str, setting: Setting | None = None) -> Cell:
    """A result divided by that of the model's baseline at the same size and setting."""
    other = report.reference(row["name"])
    base = report.find(kind, other, size_of(row), setting) if other else None
    if base is None or not base["result"].get(key) or row["result"].get(key) is None:
        return Cell(ABSENT)
    return number(row["result"][key] / base["result"][key], digits=3)


def cost(report: Report) -> Section:
    rows, parts = [], []
    for row in ordered_rows(report, report.measured("cost")):
        result = row["result"]
        kept = result.get("activation_bytes_by_stage")
        size = Cell(size_text(size_of(row)), _area(size_of(row))[0])
        rows.append(
            [
                size,
                name_cell(report, row["name"]),
                number(result["macs"], 1e9),
                relative(report, "cost", row, "macs"),
                number(result.get("flops", 2 * result["macs"]), 1e9),
                number(result.get("scan_ops"), 1e9),
                number(result.get("bytes_moved"), 1e9),
                number(sum(kept.values()) if kept else None, MIB, 3),
            ]
        )
        stages = Cell(breakdown(result.get("macs_by_stage") or {}, 1e9) or ABSENT)
        kinds = Cell(breakdown(result.get("macs_by_operator") or {}, 1e9) or ABSENT)
        scans = Cell(breakdown(result.get("scan_ops_by_operator") or {}, 1e9) or ABSENT)
        parts.append([size, name_cell(report, row["name"]), kinds, scans, stages, Cell(breakdown(kept or {}, MIB) or ABSENT)])
    columns = ("size", "model", "MACs, G", "MACs / baseline", "FLOPs, G", "scan operations, G", "bytes moved, G", "activations, MiB")
    where = ("size", "model", "MACs by operator, G", "scan operations, G", "MACs by stage, G", "activations by stage, MiB")
    tables = [Table("", columns, rows), Table("By operator and stage", where, parts)] if rows else []
    note = "Activations: what a training step keeps of one image for the backward pass, parameters excluded."
    return Section("cost", "Cost by size", tables, ("macs", "activations"), (FLOPS_NOTE, *scan_note(report), note))


def speed(report: Report) -> Section:
    tables = []
    for setting in report.settings("speed"):
        rows = []
        for row in ordered_rows(report, [row for row in report.of_kind("speed") if setting_matches(row, setting)]):
            head = [Cell(size_text(size_of(row)), _area(size_of(row))[0]), name_cell(report, row["name"])]
            head += [Cell(str(row["condition"]["batch"]), row["condition"]["batch"])] if setting.batch is None else []
            rows.append(head + speed_cells(report, row))
        columns = ("size", "model", *(("batch",) if setting.batch is None else ()))
        measured = ("latency, ms (p20 to p80)", "images/s", "speed / baseline (p20 to p80)", "held against")
        tables.append(Table(_capital(report.setting_text(setting)), (*columns, *measured), rows))
    return Section("speed", "Speed", tables, ("latency",), (RATIO_NOTE,))


def setting_matches(row: Row, setting: Setting) -> bool:
    return size_of(row) is not None and setting_of(row) == setting


def speed_cells(report: Report, row: Row) -> list[Cell]:
    """Latency, images per second, ratio, and what the ratio is against; no ratio where the baseline did not run beside the model."""
    if "error" in row["result"]:
        return [failure(row), Cell(ABSENT), Cell(ABSENT), Cell(ABSENT)]
    name, result = row["name"], row["result"]
    cells = [Cell(spread(result["latency_ms"]), result["latency_ms"]["median"]), number(result["images_per_s"]["median"], digits=3)]
    against, ratio = row["condition"].get("reference"), result.get("ratio")
    if ratio and against not in (None, name):
        return [*cells, Cell(spread(ratio), ratio["median"]), Cell(one_line(against))]
    if ratio and report.reference(name) is None:
        return [*cells, Cell("1", 1.0), Cell("itself")]
    return [*cells, Cell(ABSENT), Cell(ABSENT)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def memory(report: Report) -> Section:
    tables = []
    for setting in report.settings("memory"):
        rows = []
        for row in ordered_rows(report, [row for row in report.of_kind("memory") if setting_matches(row, setting)]):
            head = [Cell(size_text(size_of(row)), _area(size_of(row))[0]), name_cell(report, row["name"])]
            if "error" in row["result"]:
                rows.append([*head, failure(row), *[Cell(ABSENT)] * 4])
                continue
            result = row["result"]
            numbers = [number(result.get(key), digits=3) for key in ("peak_mib", "weights_mib", "peak_growth_mib")]
            compared = relative(report, "memory", row, "peak_mib", setting)
            rows.append([*head, *numbers, compared, Cell(one_line(result.get("method") or ABSENT))])
        columns = ("size", "model", "peak, MiB", "weights, MiB", "growth, MiB", "peak / baseline", "how")
        tables.append(Table(_capital(report.setting_text(setting)), columns, rows))
    return Section("memory", "Memory", tables, ("memory",), (MEMORY_NOTE,))


def accuracy(report: Report) -> Section:
    tables = []
    for split, found in report.evaluations().items():
        names = report.sorted(found)
        keys = list(dict.fromkeys(key for name in names for row in found[name] for key in row["result"]))
        totals = [key for key in keys if not key.startswith(("IoU.", "Acc."))]
        lines = []
        for row in (row for name in names for row in found[name]):
            condition = row["condition"]
            words = [str(condition[key]) for key in ("config", "checkpoint", "source") if condition.get(key)]
            words += [f"{key} {condition[key]}" for key in ("seed", "iterations", "epochs", "images") if condition.get(key) is not None]
            origin = Cell(one_line(", ".join(words)) or ABSENT)
            lines.append([name_cell(report, row["name"]), *(_per_cent(row["result"].get(key)) for key in totals), origin])
        tables.append(Table(f"Split {split}, per cent", ("model", *map(one_line, totals), "from"), lines))
        classes = [key for key in keys if key.startswith("IoU.")]
        per_class = [[Cell(one_line(key[4:])), *(_per_cent(mean_of(found[name], key)) for name in names)] for key in classes]
        if per_class:
            tables.append(Table(f"IoU by class, split {split}, per cent", ("class", *map(one_line, names)), per_class))
    notes = ["Accuracies come from evaluations, at the image size of the evaluation, which need not be a size of the tables above."]
    if any(len(rows) > 1 for found in report.evaluations().values() for rows in found.values()):
        notes.append("Where a model was evaluated several times, plots, sentences and classes show the mean.")
    return Section("accuracy", "Accuracy", tables, ("accuracy_latency",), tuple(notes))


def _per_cent(value: float | None) -> Cell:
    return Cell(f"{value:.2f}", value) if isinstance(value, int | float) else Cell(ABSENT)


def operators(report: Report) -> Section:
    tables = []
    for setting in report.settings("operators"):
        found = ordered_rows(report, [row for row in report.measured("operators") if setting_matches(row, setting)])
        categories = in_usual_order(dict.fromkeys(key for row in found for key in row["result"]["milliseconds"]))
        rows, top = [], []
        for row in found:
            times = row["result"]["milliseconds"]
            total = sum(times.values())
            head = [Cell(size_text(size_of(row)), _area(size_of(row))[0]), name_cell(report, row["name"])]
            rows.append([*head, number(total, digits=3), *(_time(times.get(category), total) for category in categories)])
            slowest = row["result"].get("top", [])[:SLOWEST]
            names = (f"{one_line(item['name'])} {significant(item['ms'])} ms in {item['calls']:g}" for item in slowest)
            top.append([*head, Cell(", ".join(names) or ABSENT)])
        columns = ("size", "model", "total, ms", *(one_line(category) for category in categories))
        caption = _capital(report.setting_text(setting))
        tables += [
            Table(f"{caption}: ms (share)", columns, rows),
            Table(f"{caption}: the {SLOWEST} slowest operators", ("size", "model", "time in calls per pass"), top),
        ]
    note = "Times under the profiler, which adds its own cost to every operator: read the shares, and the latency in the section on speed."
    return Section("operators", "Time by operator", [table for table in tables if table.rows], ("operators",), (note,))


def _time(value: float | None, total: float) -> Cell:
    if value is None:
        return Cell(ABSENT)
    return Cell(f"{significant(value)} ({100 * value / total:.0f} %)" if total else significant(value), value)


def projections(report: Report) -> Section:
    tables, errors = [], []
    rows = report.measured("projection")
    for device in dict.fromkeys(row["condition"]["device"] for row in rows):
        lines = []
        here = [row for row in rows if row["condition"]["device"] == device]
        for key in dict.fromkeys((row["condition"]["dtype"], row["condition"]["batch"]) for row in here):
            matching = [row for row in here if (row["condition"]["dtype"], row["condition"]["batch"]) == key]
            lines += [_projection(report, row) for row in ordered_rows(report, matching)]
        columns = ("size", "model", "dtype", "batch", "latency, ms", "computing", "memory traffic", "peak, MiB", "fits")
        tables.append(Table(f"Estimated for {one_line(device)}", columns, lines))
    for row in report.measured("projection_error"):
        condition, error = row["condition"], row["result"]["measured_over_estimated"]
        count = condition.get("rows")
        cells = [Cell(one_line(condition["device"])), Cell(condition["dtype"]), Cell(str(count or ABSENT), count)]
        errors.append([*cells, Cell(spread(error), error["median"])])
    if errors:
        columns = ("device", "dtype", "rows", "measured / estimated latency (p20 to p80)")
        tables.append(Table("Error of the estimate where measurements exist", columns, errors))
    return Section("projections", "Estimates for other devices", tables, (), (PROJECTION_NOTE,))


def _projection(report: Report, row: Row) -> list[Cell]:
    condition, result, size = row["condition"], row["result"], size_of(row)
    shares = [
        Cell(ABSENT if share is None else f"{100 * share:.0f} %", share) for share in map(result.get, ("compute_share", "memory_share"))
    ]
    head = [Cell(size_text(size), _area(size)[0]), name_cell(report, row["name"]), Cell(condition["dtype"])]
    numbers = [Cell(str(condition["batch"]), condition["batch"]), number(result["latency_ms"], digits=3), *shares]
    return [*head, *numbers, number(result["peak_mib"], digits=3), Cell("yes" if result["fits"] else "no")]


def failures(report: Report) -> Section:
    rows = []
    for row in (row for kind in KINDS for row in report.of_kind(kind)):
        if "error" not in row["result"]:
            continue
        condition, size = row["condition"], size_of(row)
        where = [str(condition[key]) for key in ("mode", "dtype") if condition.get(key)]
        where += [f"batch {condition['batch']}"] if condition.get("batch") else []
        step = condition.get("step") or row["kind"]
        words = [one_line(row["result"][key]) for key in ("error", "message") if row["result"].get(key)]
        head = [Cell(size_text(size) if size else ABSENT, _area(size)[0]), name_cell(report, row["name"])]
        rows.append([*head, Cell(one_line(step)), Cell(", ".join(where) or ABSENT), Cell(": ".join(words))])
    return Section(
        "failures", "What could not be measured", [Table("", ("size", "model", "step", "setting", "error"), rows)] if rows else []
    )


def column_is_numeric(rows: Sequence[Sequence[Cell]], index: int) -> bool:
    """Whether a column is set to the right: a number somewhere, and no text that is none."""
    cells = [row[index] for row in rows]
    return any(cell.value is not None for cell in cells) and all(
        cell.value is not None or cell.text in (ABSENT, OUT_OF_MEMORY, "failed") for cell in cells
    )
