"""One sentence per model: how fast, how large and how accurate beside its baseline."""

from .data import OUT_OF_MEMORY, Report, Row, Setting, Size
from .text import listed, one_line, significant, size_text


def summary(report: Report) -> list[str]:
    """A sentence for each model that has a baseline and was timed or evaluated beside it; of each mode the first setting."""
    sentences = []
    for name in report.ordered:
        other = report.reference(name)
        if report.role(name) != "model" or other is None:
            continue
        settings = report.settings("speed")
        first = [setting for i, setting in enumerate(settings) if setting.mode not in [before.mode for before in settings[:i]]]
        clauses = [clause for setting in first for clause in _speed(report, name, other, setting)]
        clauses += _memory(report, name, other) + _accuracy(report, name, other)
        if clauses:
            sentences.append(f"{one_line(name)} against {one_line(other)}: {'; '.join(clauses)}.")
    return sentences


def _speed(report: Report, name: str, other: str, setting: Setting) -> list[str]:
    """ "2.18 x as fast at 1024, 0.97 x as fast at 224 (forward, fp32, batch 1)", the largest size first."""
    rows = {size: report.find("speed", name, size, setting) for size in report.sizes(setting, "speed")}
    timed = {size: row for size, row in rows.items() if row and row["result"].get("ratio") and row["condition"].get("reference") == other}
    sizes = list(timed)
    words = [_ratio(timed[size], size) for size in dict.fromkeys([*sizes[-1:], *sizes[:1]])]
    for who in (name, other):
        lost = [size for size in rows if _out_of_memory(report.find("speed", who, size, setting))]
        words += (
            [f"{'it' if who == name else 'the other'} is out of memory at {listed([size_text(size) for size in lost])}"] if lost else []
        )
    return [f"{', '.join(words)} ({report.setting_text(setting)})"] if words else []


def _ratio(row: Row, size: Size) -> str:
    ratio = row["result"]["ratio"]
    times = f"{significant(ratio['median'])} x as fast at {size_text(size)}"
    if ratio["p20"] < 1 < ratio["p80"]:
        return f"{times} (no difference within the spread)"
    return times


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
