"""One sentence per model: how fast, how large and how accurate beside its baseline."""

from .data import OUT_OF_MEMORY, Report, Row, Setting, Size
from .text import listed, one_line, significant, size_text


def summary(report: Report) -> list[str]:
    """A sentence for each model that has a baseline and was timed or evaluated beside it."""
    sentences = []
    for name in report.ordered:
        other = report.reference(name)
        if report.role(name) != "model" or other is None:
            continue
        clauses = [clause for setting in report.settings("speed", errors=False) for clause in _speed(report, name, other, setting)]
        clauses += _memory(report, name, other) + _accuracy(report, name, other)
        if clauses:
            sentences.append(f"{one_line(name)} against {one_line(other)}: {'; '.join(clauses)}.")
    return sentences


def _speed(report: Report, name: str, other: str, setting: Setting) -> list[str]:
    """ "forward, fp32, batch 1: 2.18 x as fast at 1024, 0.97 x at 224", at the largest size first."""
    rows = {size: report.find("speed", name, size, setting) for size in report.sizes(setting, "speed")}
    timed = {size: row for size, row in rows.items() if row and "error" not in row["result"] and row["condition"].get("reference") == other}
    words = []
    if timed:
        sizes = list(timed)
        words = [_ratio(timed[size], size) for size in ([sizes[-1], sizes[0]] if len(sizes) > 1 else sizes)]
    for who in (name, other):
        lost = [size for size in rows if _out_of_memory(report.find("speed", who, size, setting))]
        words += (
            [f"{'it' if who == name else 'the baseline'} runs out of memory at {listed([size_text(size) for size in lost])}"]
            if lost
            else []
        )
    return [f"{report.setting_text(setting)}: {', '.join(words)}"] if words else []


def _ratio(row: Row, size: Size) -> str:
    ratio = row["result"]["ratio"]
    times = f"{significant(ratio['median'])} x"
    at = f"at {size_text(size)}"
    if ratio["p20"] < 1 < ratio["p80"]:
        return f"as fast within the spread {at} ({times}, {significant(ratio['p20'])} to {significant(ratio['p80'])})"
    return f"{times} as fast {at}"


def _out_of_memory(row: Row | None) -> bool:
    return row is not None and row["result"].get("error") == OUT_OF_MEMORY


def _memory(report: Report, name: str, other: str) -> list[str]:
    """The ratio of peaks at the largest size that both have, in the first setting that has one."""
    for setting in report.settings("memory", errors=False):
        for size in reversed(report.sizes(setting, "memory")):
            pair = [report.find("memory", who, size, setting) for who in (name, other)]
            if all(row is not None and row["result"].get("peak_mib") for row in pair):
                ratio = pair[0]["result"]["peak_mib"] / pair[1]["result"]["peak_mib"]
                return [f"{significant(ratio)} x its peak memory at {size_text(size)} ({report.setting_text(setting)})"]
    return []


def _accuracy(report: Report, name: str, other: str) -> list[str]:
    split, values = report.accuracy
    if name not in values or other not in values:
        return []
    return [f"mIoU {values[name]:.1f} against {values[other]:.1f} per cent on {one_line(split)}"]
