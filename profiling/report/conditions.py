"""What a reader must know to read the numbers: conventions, what was fixed, and where they come from."""

from collections.abc import Sequence

from ...kernels.costs import SCAN_CONVENTIONS
from .data import Report, Row, device_text, size_of, values_of
from .text import listed, one_line

FLOPS_NOTE = (
    "MACs are multiply-adds of convolutions, linear layers and matrix products, attention included; FLOPs are 2 x MACs. "
    "Normalisation, activations and resampling count as zero. All for one image."
)
RATIO_NOTE = (
    "Latency is the median over rounds in which the models take turns, with the 20th and 80th percentile. "
    "The ratio is images per second divided by the baseline's in the same round: above 1 is faster than the baseline."
)
MEMORY_NOTE = (
    "Peak memory is the weights and the growth during a pass: on a GPU the allocator's peak, "
    "on a CPU the growth of the resident set of a child process."
)
PROJECTION_NOTE = (
    "Estimates, not measurements: for every operator the larger of its FLOPs over the device's peak "
    "and its bytes over the bandwidth of the data sheet, added up."
)
SIZE_NOTE = "Sizes are height x width in pixels, one number for a square."
_RUN = ("speed", "memory", "operators")
_OWN = ("model", "cost", *_RUN, "projection", "projection_error", "error")


def fixed_conditions(report: Report) -> list[str]:
    """One line per fact that holds for the measurements: memory layout, TF32, rounds, device, threads."""
    rows = report.of_kind("speed")
    lines = []
    for title, key in (("memory layout", "memory_format"), ("TF32", "tf32"), ("cuDNN tries its algorithms", "cudnn_benchmark")):
        if values := values_of(rows, "condition", key):
            lines.append(f"{title}: {listed([{True: 'on', False: 'off'}.get(value, one_line(value)) for value in values])}")
    if rounds := values_of(rows, "condition", "rounds"):
        lines.append(f"timed rounds: {min(rounds)}" + (f" to {max(rounds)}" if len(rounds) > 1 else ""))
    if devices := list(dict.fromkeys(device_text(row) for row in report.of_kind(*_RUN))):
        lines.append(f"device: {listed([one_line(device) for device in devices])}")
    if split := report.accuracy[0]:
        lines.append(f"mIoU: per cent on split {one_line(split)}")
    return lines


def provenance_lines(report: Report) -> list[str]:
    """Versions, driver, commit, dates and commands: of the measurements, then what is different for accuracies that come from elsewhere."""
    own = report.of_kind(*_OWN)
    lines = _origin(own)
    foreign = [row for row in report.of_kind("accuracy") if _key(row) not in {_key(other) for other in own}]
    return lines + [f"accuracy: {line}" for line in _origin(foreign) if line not in lines]


def _key(row: Row) -> tuple:
    return row["provenance"].get("command"), row["provenance"].get("commit")


def _origin(rows: Sequence[Row]) -> list[str]:
    lines = []
    packages = list(dict.fromkeys(name for row in rows for name in (row["provenance"].get("versions") or {})))
    versions = {name: values_of(rows, "provenance", "versions", name) for name in packages}
    python = values_of(rows, "provenance", "python")
    if shown := [f"{name} {' / '.join(map(str, found))}" for name, found in {"Python": python, **versions}.items() if found]:
        lines.append(f"versions: {', '.join(shown)}")
    for title, key in (("driver", "driver"), ("CUDA", "cuda"), ("system", "system"), ("commit", "commit")):
        if values := values_of(rows, "provenance", key):
            lines.append(f"{title}: {listed([one_line(value) for value in values])}")
    if dates := sorted(map(str, values_of(rows, "provenance", "date"))):
        lines.append(f"measured: {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else ""))
    lines += [f"command: {one_line(command)}" for command in values_of(rows, "provenance", "command")]
    return lines


def scan_note(report: Report) -> list[str]:
    """How the scans that were counted are counted, in one sentence."""
    names = dict.fromkeys(name for row in report.measured("cost") for name in row["result"].get("scan_ops_by_operator") or {})
    known = [f"{name}: {SCAN_CONVENTIONS[name]}" for name in names if name in SCAN_CONVENTIONS]
    return (
        [f"Scan operations are element operations inside scans, beside the MACs and no part of them. {'; '.join(known)}."] if known else []
    )


def notes(report: Report) -> list[str]:
    """The conventions that the rows at hand need."""
    wanted = {"cost": FLOPS_NOTE, "speed": RATIO_NOTE, "memory": MEMORY_NOTE, "projection": PROJECTION_NOTE}
    sized = any(size_of(row) for row in report.of_kind("cost", "speed", "memory", "operators", "projection"))
    needed = [note for kind, note in wanted.items() if report.of_kind(kind)]
    return needed + scan_note(report) + ([SIZE_NOTE] if sized else [])
