"""Names beside the points of a scatter plot, none over another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .style import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_DISTANCES = (9, 13, 18, 24, 30, 44, 60, 80, 100, 125, 150)  # points
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)  # degrees: beside first, then above and below
_SIZE = 8
_INK = "#333333"  # some colours of models are too pale for text


@dataclass(frozen=True)
class Point:
    """A point at (x, y) in data coordinates with an error bar from `low` to `high` along x."""

    x: float
    low: float
    high: float
    y: float
    look: Look


def place_labels(figure: "Figure", panels: Sequence["Axes"], points: Sequence[Sequence[Point]]) -> None:
    """Labels the points: by name where the names of all panels find room, otherwise by number, with the names below the figure.

    The layout of the figure is fixed by this call, for the room is measured in the finished picture.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn: list[Annotation] = []
    for axes, here in zip(panels, points, strict=True):
        placed = _place(axes, here, [point.look.label for point in here])
        drawn += placed or []
        if placed is None:
            break
    else:
        return
    for annotation in drawn:
        annotation.remove()
    looks = list(dict.fromkeys(point.look for here in points for point in here))
    for axes, here in zip(panels, points, strict=True):
        _place(axes, here, [str(looks.index(point.look) + 1) for point in here], must=True)
    _number_list(figure, looks)


def _number_list(figure: "Figure", looks: Sequence[Look]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=7, linestyle="", label=f"{number}  {look.label}")
        for number, look in enumerate(looks, 1)
    ]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.03, 0), frameon=False, fontsize=_SIZE + 0.5)


def _place(axes: "Axes", points: Sequence[Point], texts: Sequence[str], *, must: bool = False) -> "list[Annotation] | None":
    """The labels, each at the first free candidate position; None where one finds none (with `must`: it stays beside its point)."""
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    pixel = axes.figure.dpi / 72
    taken = []
    for point in points:
        (x, y), (low, _), (high, _) = axes.transData.transform([(value, point.y) for value in (point.x, point.low, point.high)])
        edge = 5 * pixel  # half a marker
        taken.append(_box(min(low, x - edge), y - edge, max(high, x + edge), y + edge))
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent(renderer))
    placed: list[Annotation] = []
    for point, text in zip(points, texts, strict=True):
        for offset in _offsets():
            annotation = _annotate(axes, point, text, offset)
            box = text_box(annotation, renderer).padded(1.5 * pixel)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            annotation.remove()
        else:
            if not must:
                for done in placed:
                    done.remove()
                return None
            annotation = _annotate(axes, point, text, _offsets()[0])
            box = text_box(annotation, renderer)
        taken.append(box)
        placed.append(annotation)
    return placed


def text_box(annotation: "Annotation", renderer: "RendererBase") -> "Bbox":
    """Where the text stands, in pixels, without the line that leads to it."""
    from matplotlib.text import Text

    annotation.update_positions(renderer)
    return Text.get_window_extent(annotation, renderer)


def _offsets() -> list[tuple[float, float]]:
    turns = [(distance, math.radians(angle)) for distance in _DISTANCES for angle in _ANGLES]
    return [(distance * math.cos(turn), distance * math.sin(turn)) for distance, turn in turns]


def _annotate(axes: "Axes", point: Point, text: str, offset: tuple[float, float]) -> "Annotation":
    across, up = offset
    side = "left" if across > 1 else "right" if across < -1 else "center"
    height = "center" if side != "center" else "bottom" if up > 0 else "top"
    far = math.hypot(*offset) > _DISTANCES[0] + 1
    line = {"arrowstyle": "-", "color": point.look.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None
    where = dict(xytext=offset, textcoords="offset points", ha=side, va=height, arrowprops=line, zorder=4)
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}  # over the front's line
    return axes.annotate(text, (point.x, point.y), fontsize=_SIZE, color=_INK, bbox=halo, **where)


def _box(x0: float, y0: float, x1: float, y1: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    return Bbox([[x0, y0], [x1, y1]])
