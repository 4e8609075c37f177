"""Names beside the points of a scatter plot, none over another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Point = tuple[float, float, str, str]  # x, y, label, colour
_DISTANCES = (9, 18, 30, 44)  # points
_ANGLES = (0, 180, 90, 270, 35, 325, 145, 215)  # degrees: beside first, then above and below
_SIZE = 8


def place_labels(figure: "Figure", panels: Sequence["Axes"], points: Sequence[Sequence[Point]]) -> None:
    """Labels the points: by name where the names of all panels find room, otherwise by number, with the names below the figure.

    The layout of the figure is fixed by this call, for the room is measured in the finished picture.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn: list[Annotation] = []
    for axes, here in zip(panels, points, strict=True):
        placed = _place(axes, here, [label for _, _, label, _ in here])
        drawn += placed or []
        if placed is None:
            break
    else:
        return
    for annotation in drawn:
        annotation.remove()
    numbers = {label: str(i) for i, label in enumerate(dict.fromkeys(label for here in points for _, _, label, _ in here), 1)}
    for axes, here in zip(panels, points, strict=True):
        _place(axes, here, [numbers[label] for _, _, label, _ in here], must=True)
    colours = {label: colour for here in points for _, _, label, colour in here}
    height = figure.get_figheight()
    for line, (label, text) in enumerate(numbers.items()):
        figure.text(0.06, -(0.1 + 0.19 * line) / height, f"{text}  {label}", fontsize=_SIZE + 0.5, color=colours[label], va="top")


def _place(axes: "Axes", points: Sequence[Point], texts: Sequence[str], *, must: bool = False) -> "list[Annotation] | None":
    """The labels, each at the first free candidate position; None where one finds none (with `must`: it stays beside its point)."""
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    pixel = axes.figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    taken = [_box(x - 5 * pixel, y - 5 * pixel, x + 5 * pixel, y + 5 * pixel) for x, y in centres]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent(renderer))
    placed: list[Annotation] = []
    for (x, y, _, colour), text in zip(points, texts, strict=True):
        for offset in [*_offsets(), *([(9.0, 0.0)] if must else [])]:
            annotation = _annotate(axes, x, y, text, colour, offset)
            box = annotation.get_window_extent(renderer).padded(1.5 * pixel)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            annotation.remove()
        else:
            if not must:
                for done in placed:
                    done.remove()
                return None
            annotation = _annotate(axes, x, y, text, colour, (9.0, 0.0))
            box = annotation.get_window_extent(renderer)
        taken.append(box)
        placed.append(annotation)
    return placed


def _offsets() -> list[tuple[float, float]]:
    turns = [(distance, math.radians(angle)) for distance in _DISTANCES for angle in _ANGLES]
    return [(distance * math.cos(turn), distance * math.sin(turn)) for distance, turn in turns]


def _annotate(axes: "Axes", x: float, y: float, text: str, colour: str, offset: tuple[float, float]) -> "Annotation":
    across, up = offset
    side = "left" if across > 1 else "right" if across < -1 else "center"
    height = "center" if side != "center" else "bottom" if up > 0 else "top"
    far = math.hypot(*offset) > _DISTANCES[0] + 1
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None
    return axes.annotate(
        text, (x, y), xytext=offset, textcoords="offset points", ha=side, va=height, fontsize=_SIZE, color=colour, arrowprops=line, zorder=4
    )


def _box(x0: float, y0: float, x1: float, y1: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    return Bbox([[x0, y0], [x1, y1]])
