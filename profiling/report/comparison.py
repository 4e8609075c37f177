"""What changed between two runs, with the noise of their measurements taken into account.

Rows are matched by kind, name and condition, without what does not change the quantity: rounds, reference, the reason why a baseline was
chosen. A measurement that failed in one run says less about its condition, so it is matched by size, batch, dtype and mode alone. Ratios
are compared where both runs took them against the same model. The rule for latency and ratios:

- Relative change = after / before - 1 of the medians.
- A change is noise where the intervals from the 20th to the 80th percentile of both runs overlap: passes of both runs took the same time.
- A change is noise, too, where it is below the combined relative half-width, sqrt(h_before^2 + h_after^2) with
  h = (p80 - p20) / (2 median), the usual sum of independent spreads: a skewed interval may end just beside the other one.
- One timed round has no spread, so nothing is said about its change.

A spread is that of passes within a run. What differs between runs (another clock, other work on the machine) moves all passes of a run and
is not in it: the ratios, taken between models that take turns, are steadier than the latencies.

Counts are exact: any difference is a change. Peak memory has no spread; see `MEMORY_TOLERANCE_MIB`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .data import KINDS, Report, Row, values_of

# The kernel grows a resident set by pages of up to 2 MiB, and CUDA's allocator takes segments of 2 MiB: two of them, or 2 % for the buffers
# that a library allocates by its own choice of algorithm.
MEMORY_TOLERANCE_MIB = 4.0
MEMORY_TOLERANCE = 0.02
# An evaluation repeats to rounding: one pixel in ten thousand.
ACCURACY_TOLERANCE = 0.01
SAME, NOISE, UNKNOWN = "same", "no change beyond noise", "unknown: no spread"
# Parts of a condition that no quantity depends on.
_ASIDE = {"rounds", "reference", "role", "of", "reason", "source", "rows", "peaks", "step"}
_CORE = ("size", "batch", "dtype", "mode", "largest_batch")
_COUNTS = {"model": ("parameters", "trainable", "live"), "cost": ("macs", "scan_ops", "bytes_moved")}
_ESTIMATES = {"projection": ("latency_ms", "peak_mib")}
_BETTER = {"latency_ms": ("faster", "slower"), "ratio": ("higher ratio", "lower ratio")}


@dataclass(frozen=True)
class Change:
    """One quantity before and after.

    Attributes:
        kind: kind of the rows; "provenance" for a difference of the conditions themselves, which makes it no comparison of code.
        name: the model; for "provenance", what differs (device, threads, torch, dtype ...).
        condition: of the rows, without the parts that they are not matched by.
        quantity: key of the result, "error", or "row" for a measurement that only one run has.
        before, after: the numbers (medians), or texts; None where a run has none.
        change: after / before - 1, None where there is none.
        noise: the relative change below which nothing is concluded, None for what is exact.
        verdict: faster, slower, higher ratio, lower ratio, more, less, changed, same, "no change beyond noise", "unknown: no spread",
            "only before", "only after", "error appeared", "error vanished", "other error", or "different conditions".
    """

    kind: str
    name: str
    condition: Mapping[str, Any]
    quantity: str
    before: float | str | None
    after: float | str | None
    change: float | None
    noise: float | None
    verdict: str


def compare_rows(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """Differences of the conditions first, then every quantity of the rows that match, in the order of `before`, then rows only of `after`.

    Kinds that are no part of a profile are passed over, and so are times by operator: they have neither spread nor tolerance. Of a
    measurement that a run repeats, the last row counts.

    Raises:
        ValueError: a run without rows, rows of another schema, or rows that lack what their kind must have.
    """
    runs = [_checked(rows, which) for rows, which in ((before, "before"), (after, "after"))]
    old, new = ({_key(row): row for row in rows if row["kind"] != "operators"} for rows in runs)
    partners = {key: key for key in old if key in new}
    partners |= _failed_partners({k: r for k, r in old.items() if k not in new}, {k: r for k, r in new.items() if k not in old})
    changes = _environment(*runs)
    for key, row in old.items():
        changes += _pair(row, new[partners[key]]) if key in partners else [_single(row, before=True)]
    return changes + [_single(row, before=False) for key, row in new.items() if key not in partners.values()]


def _checked(rows: Iterable[Row], which: str) -> list[Row]:
    """The rows that a report knows; one of kind "error" is filed under the kind that failed."""
    try:
        found = Report(rows).of_kind(*KINDS)
    except ValueError as error:
        raise ValueError(f"{which}: {error}") from error
    step = [row["condition"].get("step") if row["kind"] == "error" else None for row in found]
    return [{**row, "kind": kind} if kind in KINDS else row for row, kind in zip(found, step, strict=True)]


def _key(row: Row) -> str:
    return json.dumps([row["kind"], row["name"], _condition(row)], sort_keys=True, default=str)


def _condition(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row["condition"].items() if key not in _ASIDE}


def _failed_partners(old: Mapping[str, Row], new: Mapping[str, Row]) -> dict[str, str]:
    """Key before -> key after, of rows without an exact partner, one of them an error, that agree in what an error tells of its setting."""

    def core(row: Row) -> str:
        batch = {"batch": None} if row["condition"].get("largest_batch") else {}
        values = {key: row["condition"].get(key) or None for key in _CORE} | batch
        return json.dumps([row["kind"], row["name"], values], sort_keys=True, default=str)

    by_core = {core(row): key for key, row in new.items()}
    pairs = {key: by_core[core(row)] for key, row in old.items() if core(row) in by_core}
    return {a: b for a, b in pairs.items() if "error" in old[a]["result"] or "error" in new[b]["result"]}


def _environment(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Where both runs measured and the conditions differ: device, threads, software, dtype, memory layout."""
    places = {
        "device": ("provenance", "device"),
        "threads": ("provenance", "threads"),
        "driver": ("provenance", "driver"),
        "torch": ("provenance", "versions", "torch"),
        "dtype": ("condition", "dtype"),
        "memory layout": ("condition", "memory_format"),
        "TF32": ("condition", "tf32"),
    }
    runs = [[row for row in rows if row["kind"] in ("speed", "memory")] for rows in (before, after)]
    found = []
    for name, (part, *path) in places.items():
        old, new = (sorted(map(str, values_of(rows, part, *path))) for rows in runs)
        if all(runs) and old != new:
            texts = (", ".join(values) or "not said" for values in (old, new))
            found.append(Change("provenance", name, {}, name, *texts, None, None, "different conditions"))
    return found


def _single(row: Row, *, before: bool) -> Change:
    """A row that only one run has; an error alone appeared or vanished with what it was about."""
    error = row["result"].get("error")
    verdict = ("error vanished" if before else "error appeared") if error else ("only before" if before else "only after")
    texts = (error or "measured", None) if before else (None, error or "measured")
    return _change(row, "error" if error else "row", *texts, None, None, verdict)


def _pair(old: Row, new: Row) -> list[Change]:
    kind, errors = old["kind"], [row["result"].get("error") for row in (old, new)]
    if any(errors):
        if errors[0] == errors[1]:
            return [_change(old, "error", *errors, None, None, SAME)]
        verdict = "error appeared" if not errors[0] else "error vanished" if not errors[1] else "other error"
        return [_change(old, "error", *(error or "measured" for error in errors), None, None, verdict)]
    a, b = old["result"], new["result"]
    changes = [_exact(old, key, a[key], b[key]) for key in _COUNTS.get(kind, ()) if _numbers(a.get(key), b.get(key))]
    changes += [_exact(old, key, a[key], b[key], rounding=1e-9) for key in _ESTIMATES.get(kind, ()) if _numbers(a.get(key), b.get(key))]
    if kind == "speed":
        changes.append(_noisy(old, "latency_ms", a["latency_ms"], b["latency_ms"]))
        references = [row["condition"].get("reference") for row in (old, new)]
        if references[0] == references[1] != old["name"] and "ratio" in a and "ratio" in b:
            changes.append(_noisy(old, "ratio", a["ratio"], b["ratio"]))
    if kind == "memory":
        changes.append(_memory(old, a["peak_mib"], b["peak_mib"]))
    if kind == "accuracy":
        changes += [_accuracy(old, key, a[key], b[key]) for key in ("mIoU", "aAcc", "mAcc") if _numbers(a.get(key), b.get(key))]
    return changes


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _change(row: Row, quantity: str, before: Any, after: Any, change: float | None, noise: float | None, verdict: str) -> Change:
    return Change(row["kind"], row["name"], _condition(row), quantity, before, after, change, noise, verdict)


def _relative(before: float, after: float) -> float | None:
    return after / before - 1 if before else None


def _exact(row: Row, key: str, before: float, after: float, rounding: float = 0.0) -> Change:
    same = math.isclose(before, after, rel_tol=rounding, abs_tol=0)
    return _change(row, key, before, after, _relative(before, after), None, SAME if same else "more" if after > before else "less")


def _noisy(row: Row, key: str, before: Mapping[str, float], after: Mapping[str, float]) -> Change:
    change = _relative(before["median"], after["median"])
    widths = [(run["p80"] - run["p20"]) / 2 / run["median"] if run["median"] else 0.0 for run in (before, after)]
    noise = math.hypot(*widths)
    overlap = before["p20"] <= after["p80"] and after["p20"] <= before["p80"]
    if change is None or 0 in widths:
        verdict = UNKNOWN
    elif overlap or abs(change) < noise:
        verdict = NOISE
    else:
        verdict = _BETTER[key][(change > 0) == (key == "latency_ms")]
    return _change(row, key, before["median"], after["median"], change, noise, verdict)


def _memory(row: Row, before: float, after: float) -> Change:
    tolerance = max(MEMORY_TOLERANCE_MIB, MEMORY_TOLERANCE * before)
    verdict = NOISE if abs(after - before) <= tolerance else "more" if after > before else "less"
    return _change(row, "peak_mib", before, after, _relative(before, after), tolerance / before if before else None, verdict)


def _accuracy(row: Row, key: str, before: float, after: float) -> Change:
    verdict = SAME if abs(after - before) <= ACCURACY_TOLERANCE else "more" if after > before else "less"
    return _change(row, key, before, after, _relative(before, after), None, verdict)
