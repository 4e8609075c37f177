"""Arguments that the families share, checked and completed in one way."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .names import choose, unknown


def complete_arch(
    arch: str | Mapping[str, Any],
    archs: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
    required: Collection[str] = ("dim",),
    **replaced: Any,
) -> dict[str, Any]:
    """The full dict of an architecture; its values are the family's to check.

    Args:
        arch: a name in `archs`, or a dict with the same keys.
        archs: of the family.
        defaults: values of the keys that an architecture may leave out.
        required: keys that it may not.
        replaced: values that the caller gives by argument; None keeps the architecture's.

    Raises:
        ValueError: an unknown name or key (the message has the near ones), or a required key is missing.
    """
    if not isinstance(arch, Mapping):
        arch = choose(arch, archs, "arch")
    known = {*required, *defaults}
    for key in arch:
        if key not in known:
            raise ValueError(unknown(key, known, "key of arch"))
    full = {**defaults, **arch, **{key: value for key, value in replaced.items() if value is not None}}
    if missing := set(required) - set(full):
        raise ValueError(f"arch as a dict needs {' and '.join(sorted(missing))}, got {dict(arch)}")
    return full


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Probability of dropping a branch, for each of `depth` layers: linear from 0 at the first to `rate` at the last.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {rate!r}")
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def image_size(size: int | Sequence[int], name: str = "img_size") -> tuple[int, int]:
    """(height, width) from an int for both, or a sequence of two.

    Raises:
        ValueError: anything else, or a number below 1; the message starts with `name`.
    """
    pair = (size, size) if isinstance(size, int) else size
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"{name} must be (h, w), two positive ints, or one int for both, got {size!r}")
    return pair[0], pair[1]
