"""Numbers and names as a reader sees them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "-"  # not measured


def significant(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits and no exponent; digits before the point are never dropped. None: a dash.

    >>> [significant(x) for x in (0.01234, 1.0, 97.333, 12345.6)]
    ['0.0123', '1.00', '97.3', '12346']
    """
    if value is None:
        return ABSENT
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    # Rounding may add a digit before the point: 9.996 is 10.0, not 10.00.
    decimals = digits - 1 - math.floor(math.log10(abs(round(value, decimals))))
    return f"{value:.{max(decimals, 0)}f}"


def scaled(value: float | None, unit: float, digits: int = 4) -> str:
    """A count in units of `unit`: scaled(22050664, 1e6) is "22.05"."""
    return significant(None if value is None else value / unit, digits)


def spread(values: Mapping[str, float], digits: int = 3) -> str:
    """Median and spread, "97.3 (95.9 to 98.5)"; the median alone where all three are one."""
    median, low, high = (significant(values[key], digits) for key in ("median", "p20", "p80"))
    return median if values["p20"] == values["p80"] else f"{median} ({low} to {high})"


def size_text(size: Sequence[int]) -> str:
    """(512, 512) is "512", (512, 1024) is "512x1024", height first."""
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"


def one_line(name: Any) -> str:
    """A name without line breaks and control characters, which would break a table or colour a terminal."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(name))).strip()


def shortened(name: str, width: int) -> str:
    """A name cut in its middle to `width` characters: both ends of a config's name tell more than its middle."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + "…" + name[len(name) - tail :]


def short_names(names: Sequence[str], width: int = 32) -> dict[str, str]:
    """Name -> short name, all different and at most `width` characters long.

    Where a name is longer, parts between underscores that all names share are left out of all; what is still too long is cut in its middle.
    A cut that would make two names equal gets a number.
    """
    parts = [one_line(name).split("_") for name in names]
    if any(len(one_line(name)) > width for name in names) and len(names) > 1:
        shared = set.intersection(*map(set, parts))
        rests = [[part for part in whole if part not in shared] for whole in parts]
        parts = rests if all(rests) else parts
    shorts: dict[str, str] = {}
    for number, (name, rest) in enumerate(zip(names, parts, strict=True), 1):
        short = shortened("_".join(rest), width)
        if short in shorts.values():
            short = shortened("_".join(rest), width - len(f" ({number})")) + f" ({number})"
        shorts[name] = short
    return shorts


def listed(values: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else "".join(values)


def breakdown(parts: Mapping[str, float], unit: float, most: int = 8) -> str:
    """The parts of a sum in their order, "stem 0.02, stages 5.87 ..."; zeros are left out, beyond `most` parts the rest is "N more"."""
    parts = {key: value for key, value in parts.items() if value}
    kept = sorted(sorted(parts, key=lambda key: -parts[key])[:most], key=list(parts).index)
    rest = [parts[key] for key in parts if key not in kept]
    words = [f"{one_line(key) or '(the model itself)'} {scaled(parts[key], unit, 3)}" for key in kept]
    return ", ".join([*words, *([f"{len(rest)} more {scaled(sum(rest), unit, 3)}"] if rest else [])])
