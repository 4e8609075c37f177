"""Two small pieces of arithmetic behind the plots: the slope of a power law, and which points are not beaten by another."""

import math
from collections.abc import Sequence


def loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent a of the power law y = c x^a that is nearest to the points: least squares of log y on log x.

    Args:
        x, y: positive numbers, equally many; at least two different values of x.

    Raises:
        ValueError: for different lengths, a value that is not positive and finite, or fewer than two different x.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must be equally long, got {len(x)} and {len(y)} values")
    for name, values in (("x", x), ("y", y)):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must hold positive finite numbers, got {value!r}")
    if len(set(x)) < 2:
        raise ValueError(f"x must hold at least two different values, got {list(x)!r}")
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = math.fsum(log_x) / len(x), math.fsum(log_y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return covariance / math.fsum((a - mean_x) ** 2 for a in log_x)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, value) points no other point beats: none costs as little or less and is worth as much or more, one of both strictly.

    Equal points do not beat each other, so duplicates on the front are all on it.

    Returns:
        Indices into `points`, by rising cost (ties in the order given).

    Raises:
        ValueError: for a point that is not two finite numbers.
    """
    for point in points:
        if len(point) != 2 or not all(math.isfinite(value) for value in point):
            raise ValueError(f"points must be pairs (cost, value) of finite numbers, got {point!r}")

    def beaten(cost: float, value: float) -> bool:
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)

    return sorted((i for i, point in enumerate(points) if not beaten(*point)), key=lambda i: points[i][0])
