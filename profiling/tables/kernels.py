"""Tables of kernel benchmarks: what tools/benchmark_kernels.py measured."""

from collections.abc import Mapping, Sequence

from .base import Row, digits, lines, table

MODES = {"fwd": "forward", "bwd": "backward", "fwdbwd": "forward and backward"}
ATTENTION = "sdpa"


@table
def kernel_ratios(rows: Sequence[Row]) -> str:
    """Time relative to softmax attention by shape and backend, of the shapes that were measured in all modes; C before PyTorch."""
    ratios = _by_condition(rows, "ratio_to_sdpa")
    modes = [mode for mode in MODES if any(mode == found for _, _, found in ratios)]
    backends = sorted({backend for _, backend, _ in ratios if backend != ATTENTION})
    shapes = [
        s for s in dict.fromkeys(s for s, _, _ in ratios) if all((s, backend, mode) in ratios for backend in backends for mode in modes)
    ]
    axes = next(row["condition"]["axes"] for row in rows)
    head = [f"({', '.join(axes.split())})", *(["backend"] if len(backends) > 1 else []), *(MODES[mode] for mode in modes)]
    body = []
    for shape in shapes:
        for number, backend in enumerate(backends):
            cells = [_two_digits(ratios[shape, backend, mode]) for mode in modes]
            name = [f"`{backend}`"] if len(backends) > 1 else []
            body.append(["" if number else f"({', '.join(map(str, shape))})", *name, *cells])
    return lines(head, body)


@table
def kernel_growth(rows: Sequence[Row]) -> str:
    """The power of T with which time grows over a sweep, by backend; attention last."""
    slopes = {(backend, mode): value["median"] for (_, backend, mode), value in _by_condition(rows, "log_log_slope").items()}
    backends = sorted({backend for backend, _ in slopes}, key=lambda backend: (backend == ATTENTION, backend))
    names = {backend: "attention" if backend == ATTENTION else f"`{backend}`" for backend in backends}
    body = [[names[backend], *(f"{slopes[backend, mode]:.2f}" for mode in MODES)] for backend in backends]
    return lines(["time grows with T to the power of", *MODES.values()], body)


def _by_condition(rows: Sequence[Row], metric: str) -> dict[tuple[tuple[int, ...], str, str], Mapping[str, float]]:
    """(shape, provider, mode) -> median, p20 and p80 of a metric."""
    conditions = [(row["condition"], row["result"][metric]) for row in rows if metric in row["result"]]
    return {(tuple(where["shape"]), where["provider"], where["mode"]): value for where, value in conditions}


def _two_digits(value: Mapping[str, float]) -> str:
    return f"{digits(value['median'], 2)} ({digits(value['p20'], 2)} to {digits(value['p80'], 2)})"
