"""Tables of profiles: what tools/profile_model.py measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Row, digits, lines, spread, table
from .names import mixer_of, shown


class Measured:
    """Rows of a profile at one batch, by kind, model and image size; of a measurement that was repeated the last counts."""

    def __init__(self, rows: Sequence[Row], batch: int = 1):
        self.results: dict[tuple[str, str, tuple[int, int] | None, str | None], Mapping[str, Any]] = {}
        for row in rows:
            size, mode = row["condition"].get("size"), row["condition"].get("mode")
            if mode and row["condition"]["batch"] != batch:
                continue
            if row["kind"] == "accuracy":  # Resize takes (width, height)
                size = next(scale for key, scale in row["condition"]["options"].items() if key.endswith(".scale"))[::-1]
            self.results[row["kind"], row["name"], tuple(size) if size else None, mode] = row["result"]
        self.names = list(dict.fromkeys(row["name"] for row in rows if row["kind"] == "model"))
        self.sizes = sorted({size for _, _, size, _ in self.results if size})

    def __call__(self, kind: str, name: str, size: tuple[int, int] | None = None, mode: str | None = None) -> Mapping[str, Any]:
        return self.results[kind, name, size, mode]

    def has(self, kind: str, name: str, size: tuple[int, int], mode: str | None = None) -> bool:
        return (kind, name, size, mode) in self.results


@table
def by_size(rows: Sequence[Row]) -> str:
    """Models side by side, a line per image size; their speed is relative to the attention twin."""
    measured = Measured(rows)
    twin = next(row["condition"]["reference"] for row in rows if row["kind"] == "speed")
    others = [name for name in measured.names if name != twin]
    names = [*others, twin]
    titles = [mixer_of(name) or shown(name) for name in names]
    head = ["image", f"ms: {titles[0]}", *titles[1:], *(f"{titles[-1]} / {title}, time" for title in titles[:-1])]
    head += [f"peak memory, MiB, weights and growth: {titles[0]}", *titles[1:], f"GMACs: {titles[0]}", *titles[1:]]
    body = []
    for size in measured.sizes:
        speeds = {name: measured("speed", name, size, "forward") for name in names}
        cells = [digits(speed["latency_ms"]["median"]) for speed in speeds.values()] + [spread(speeds[name]["ratio"]) for name in others]
        cells += [f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}" for name in names]
        cells += [digits(measured("cost", name, size)["macs"] / 1e9) for name in names]
        body.append([str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}", *cells])
    return lines(head, body)


@table
def side_by_side(rows: Sequence[Row]) -> str:
    """Models that are all held against one, which comes first."""
    measured = Measured(rows)
    reference = next(row["condition"]["reference"] for row in rows if row["kind"] == "speed")
    sides = [str(size[0]) for size in measured.sizes]
    head = ["backbone", "parameters, M"]
    for title in ("GMACs", "ms", "peak MiB", f"speed to {shown(reference)}"):
        head += [f"{title} {sides[0]}", *sides[1:]]
    body = []
    for name in sorted(measured.names, key=lambda name: name != reference):
        speeds = [measured("speed", name, size, "forward") for size in measured.sizes]
        cells = [digits(measured("cost", name, size)["macs"] / 1e9) for size in measured.sizes]
        cells += [f"{speed['latency_ms']['median']:.0f}" for speed in speeds]
        cells += [f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}" for size in measured.sizes]
        cells += [f"{speed['ratio']['median']:.2f}" for speed in speeds]
        body.append([shown(name), f"{measured('model', name)['parameters'] / 1e6:.1f}", *cells])
    return lines(head, body)


@table
def tradeoffs(rows: Sequence[Row]) -> str:
    """What each network costs, and how well it does, by image size."""
    measured = Measured(rows)
    head = ["network", "parameters, M", "image", "GMACs", "ms", "peak MiB", "mIoU, %", "pixels right, %"]
    body = []
    for name in measured.names:
        for number, size in enumerate(measured.sizes):
            speed = measured("speed", name, size, "forward")["latency_ms"]
            scores = measured("accuracy", name, size) if measured.has("accuracy", name, size) else {}
            body.append(
                [
                    *(("", "") if number else (shown(name), f"{measured('model', name)['parameters'] / 1e6:.2f}")),
                    f"{size[0]}x{size[1]}",
                    f"{measured('cost', name, size)['macs'] / 1e9:.2f}",
                    spread(speed, ".1f"),
                    f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}",
                    *(f"{scores[key]:.1f}" if key in scores else "not trained" for key in ("mIoU", "aAcc")),
                ]
            )
    return lines(head, body)


@table
def training_steps(rows: Sequence[Row]) -> str:
    """Training steps of eight images, where they were measured."""
    measured = Measured(rows, batch=8)
    head = ["network", "image", "forward, ms", "training step, ms", "peak MiB: forward", "training step"]
    body = []
    for name in measured.names:
        for size in measured.sizes:
            if measured.has("speed", name, size, "training step"):
                modes = ("forward", "training step")
                times = [spread(measured("speed", name, size, mode)["latency_ms"], ".0f") for mode in modes]
                memory = [f"{measured('memory', name, size, mode)['peak_mib']:.0f}" for mode in modes]
                body.append([shown(name), f"{size[0]}x{size[1]}", *times, *memory])
    return lines(head, body)
