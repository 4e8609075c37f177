"""Draws a scene of `shapes_scene.py`: image and label map, in integer numpy alone, so every machine gives the same bytes.

Shapes are masks on the half-pixel grid; a pixel is covered by 0 to 4 of its quarters, which blends its colour and, from two quarters on,
gives it its label. Textures are sums of value noise, stripes and checks.
"""

from dataclasses import dataclass

import numpy as np

from .shapes_scene import FREE, HUES, KNOT, LINKED, THREAD, Draw, Pair, Point, Scene, Solid, curve

VERSION = 2  # of the drawing and the sampling: any change of a pixel raises it, and cached images are made again
CLASSES = ("background", "block", "triangle", "ring", "thread", "knot", "linked disc", "free disc")
PALETTE = ([40, 42, 54], [139, 160, 190], [236, 190, 120], [150, 110, 180], [235, 235, 235], [236, 92, 168], [0, 158, 215], [240, 112, 40])

GROUNDS = (
    ((58, 66, 58), (118, 122, 98)),
    ((84, 74, 64), (150, 134, 112)),
    ((52, 60, 72), (110, 118, 128)),
    ((96, 92, 90), (158, 156, 148)),
)
PAINTS = ((112, 84, 66), (178, 158, 128), (92, 104, 118), (170, 176, 180), (122, 132, 100), (84, 78, 92), (190, 182, 160), (64, 70, 68))
SHADE, WHITE = np.array((20, 20, 22)), np.array((255, 255, 255))
FOOTPRINTS = {  # of a thread of 1 and 2 px on the half-pixel grid
    2: np.array([(x, y) for x in (-1, 0) for y in (-1, 0)]),
    4: np.array([(x, y) for x in range(-2, 2) for y in range(-2, 2) if (x, y) not in {(-2, -2), (-2, 1), (1, -2), (1, 1)}]),
}


def noise(draw: Draw, size: tuple[int, int], cell: int) -> np.ndarray:
    """Value noise: a random lattice with one point every `cell` pixels, bilinear between them. (H, W) int32 in [0, 255]."""
    rows, cols = (n // cell + 2 for n in size)
    lattice = draw.bytes(rows, cols).astype(np.int32)
    y, x = (np.arange(n, dtype=np.int32) for n in size)
    fy, fx = (y % cell)[:, None], x % cell
    left = lattice[:, x // cell]
    across = left * (cell - fx) + lattice[:, x // cell + 1] * fx
    return (across[y // cell] * (cell - fy) + across[y // cell + 1] * fy) // cell**2


def mix(first: tuple[int, ...], second: tuple[int, ...], weight: np.ndarray) -> np.ndarray:
    """Between two RGB colours by a weight of 0 to 255: (H, W, 3) int32."""
    a, b = np.array(first, np.int32), np.array(second, np.int32)
    return a + ((b - a) * weight[..., None] >> 8)


@dataclass(frozen=True)
class _Patch:
    """A texture (h, w, 3) whose first pixel lies at (top, left) of the image."""

    pixels: np.ndarray
    top: int
    left: int

    def under(self, window: tuple[slice, slice]) -> np.ndarray:
        rows, cols = window
        return self.pixels[rows.start - self.top : rows.stop - self.top, cols.start - self.left : cols.stop - self.left]


Colour = np.ndarray | _Patch


def _colour(colour: Colour, window: tuple[slice, slice]) -> np.ndarray:
    """What a plain (3,) colour or a patch shows in a window."""
    return colour.under(window) if isinstance(colour, _Patch) else colour


class _Canvas:
    """Image (H, W, 3) int32 and labels (H, W) uint8 under construction."""

    def __init__(self, ground: np.ndarray):
        self.image = ground
        self.labels = np.zeros(ground.shape[:2], np.uint8)

    def window(self, low: Point, high: Point) -> tuple[slice, slice] | None:
        """The rows and columns (pixels) that the half-pixel box low..high touches inside the image; None if it lies outside."""
        height, width = self.labels.shape
        y0, y1 = max(0, low[1] // 2), min(height, high[1] // 2 + 1)
        x0, x1 = max(0, low[0] // 2), min(width, high[0] // 2 + 1)
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    @staticmethod
    def grid(window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Half-pixel coordinates x (1, 2w) and y (2h, 1) of a window."""
        rows, cols = window
        return np.arange(2 * cols.start, 2 * cols.stop)[None], np.arange(2 * rows.start, 2 * rows.stop)[:, None]

    def blend(self, window: tuple[slice, slice], mask: np.ndarray, colour: np.ndarray, label: int | None, strength: int = 4) -> None:
        """Lays `colour` over the window where the half-pixel mask (2h, 2w) is set; `strength` of 4 is opaque."""
        quarters = mask.astype(np.int32)
        cover = quarters[::2, ::2] + quarters[1::2, ::2] + quarters[::2, 1::2] + quarters[1::2, 1::2]
        part = self.image[window]
        self.image[window] = part + ((colour - part) * (cover * strength)[..., None] >> 4)
        if label is not None:
            self.labels[window][cover >= 2] = label

    def disc(self, centre: Point, radius: int, colour: Colour, label: int | None, hole: int = 0, strength: int = 4) -> None:
        window = self.window((centre[0] - radius, centre[1] - radius), (centre[0] + radius, centre[1] + radius))
        if window is not None:
            x, y = self.grid(window)
            # Sub-pixel centres, doubled: the distance of (2x + 1, 2y + 1) from (2cx, 2cy).
            distance = (2 * x + 1 - 2 * centre[0]) ** 2 + (2 * y + 1 - 2 * centre[1]) ** 2
            inside = (distance <= 4 * radius**2) & (distance >= 4 * hole**2)
            self.blend(window, inside, _colour(colour, window), label, strength)

    def polygon(self, corners: tuple[Point, ...], colour: Colour, label: int | None, strength: int = 4) -> None:
        """A convex polygon, corners in clockwise order (y points down)."""
        points = np.array(corners)
        window = self.window(tuple(points.min(0)), tuple(points.max(0)))
        if window is not None:
            x, y = self.grid(window)
            inside = np.ones((y.size, x.size), bool)
            for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
                inside &= (bx - ax) * (2 * y + 1 - 2 * ay) - (by - ay) * (2 * x + 1 - 2 * ax) >= 0
            self.blend(window, inside, _colour(colour, window), label, strength)

    def line(self, points: np.ndarray, width: int, colour: Colour, label: int | None) -> None:
        """A line through neighbouring half-pixel points (n, 2), `width` half pixels thick."""
        marks = (points[:, None] + FOOTPRINTS[width]).reshape(-1, 2)
        window = self.window(tuple(marks.min(0)), tuple(marks.max(0)))
        if window is not None:
            rows, cols = window
            mask = np.zeros((2 * (rows.stop - rows.start), 2 * (cols.stop - cols.start)), bool)
            x, y = marks[:, 0] - 2 * cols.start, marks[:, 1] - 2 * rows.start
            inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
            mask[y[inside], x[inside]] = True
            self.blend(window, mask, _colour(colour, window), label)


def _ground(draw: Draw, size: tuple[int, int]) -> np.ndarray:
    low, high = GROUNDS[draw.below(len(GROUNDS))]
    weight = (4 * noise(draw, size, 48) + 3 * noise(draw, size, 16) + 2 * noise(draw, size, 5) + draw.bytes(*size)) // 10
    return mix(low, high, weight)


def _paint(draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """The texture of a solid, (h, w, 3): stripes, checks, blotches or plain, between two paints, with some grain."""
    first, second = (PAINTS[i] for i in draw.sample(len(PAINTS), 2))
    y, x = np.arange(size[0])[:, None], np.arange(size[1])[None]
    kind, period = draw.below(4), draw.between(4, 9)
    a, b = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, -2))[draw.below(6)]
    if kind == 0:
        weight = 255 * ((a * x + b * y) // period % 2)
    elif kind == 1:
        weight = 255 * ((x // period + y // period) % 2)
    elif kind == 2:
        weight = noise(draw, size, 2 * period)
    else:
        weight = np.broadcast_to(128, size)
    return mix(first, second, (3 * weight + noise(draw, size, 3)) // 4)


def _draw_solid(canvas: _Canvas, solid: Solid, draw: Draw) -> None:
    (x, y), radius = solid.centre, solid.radius
    window = canvas.window((x - radius, y - radius), (x + radius, y + radius))
    if window is None:
        return
    rows, cols = window
    texture = _Patch(_paint(draw, (rows.stop - rows.start, cols.stop - cols.start)), rows.start, cols.start)
    if solid.corners is None:
        canvas.disc((x + 3, y + 4), radius + 1, SHADE, None, solid.hole, strength=2)
        canvas.disc((x, y), radius, texture, solid.label, solid.hole)
    else:
        canvas.polygon(tuple((cx + 3, cy + 4) for cx, cy in solid.corners), SHADE, None, strength=2)
        canvas.polygon(solid.corners, texture, solid.label)


def _draw_discs(canvas: _Canvas, pair: Pair, cut: bool, draw: Draw) -> None:
    """Both discs of a pair: dark rim, grainy face, a highlight. Only the label knows about the cut."""
    base = np.array(HUES[pair.hue], np.int32)
    label = FREE if cut else LINKED
    for disc in pair.discs:
        (x, y), radius = disc.centre, disc.radius
        rows, cols = canvas.window((x - radius, y - radius), (x + radius, y + radius))
        grain = noise(draw, (rows.stop - rows.start, cols.stop - cols.start), 3)
        face = _Patch(base + ((grain - 128) * 3 >> 3)[..., None], rows.start, cols.start)
        canvas.disc((x, y), radius, base // 3, label)
        canvas.disc((x, y), radius - max(2, radius // 6), face, label)
        canvas.disc((x - radius // 3, y - radius // 3), radius // 4, WHITE, label, strength=2)


def _draw_thread(canvas: _Canvas, pair: Pair, cut: bool, scene: Scene) -> None:
    lines = [curve(half) for half in pair.halves]
    if cut:
        reach = (2 * scene.scale.cut) ** 2
        lines = [line[((line - np.array(pair.joint)) ** 2).sum(1) > reach] for line in lines]
    for line in lines:
        canvas.line(line, pair.width, np.array(HUES[pair.hue]), THREAD)
    if cut:
        for line in lines:
            _draw_knot(canvas, tuple(int(v) for v in line[-1]), pair.hue, scene)


def _draw_knot(canvas: _Canvas, at: Point, hue: int, scene: Scene) -> None:
    """A bead: rim in the hue of its thread, white core."""
    radius = 2 * scene.scale.knot
    canvas.disc(at, radius, np.array(HUES[hue]), KNOT)
    canvas.disc(at, radius - max(1, radius // 3), WHITE, KNOT)


def _states(scene: Scene, cut: bool | tuple[bool, ...] | None) -> tuple[bool, ...]:
    if cut is None:
        return tuple(pair.cut for pair in scene.pairs)
    states = (cut,) * len(scene.pairs) if isinstance(cut, bool) else tuple(cut)
    if len(states) != len(scene.pairs):
        raise ValueError(f"cut: expected one bool or one for each of {len(scene.pairs)} pairs, got {cut!r}")
    return states


def render(scene: Scene, *, cut: bool | tuple[bool, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scene: RGB image (H, W, 3) uint8 and labels (H, W) uint8.

    `cut` replaces the state of the threads: one bool for all pairs, or one per pair; None keeps the scene's own. Between two states the
    image differs only inside the squares of half side `scene.scale.joint` around the joints, and the labels there (thread or what lies
    under it) and on discs (linked or free), at least `scene.scale.margin` pixels away.

    Raises:
        ValueError: a tuple of another length than `scene.pairs`.
    """
    states = _states(scene, cut)
    canvas = _Canvas(_ground(Draw(*scene.texture_key, 0), scene.size))
    grounds = [(solid, Draw(*scene.texture_key, 1, i)) for i, solid in enumerate(scene.solids)]
    for solid, draw in grounds:
        if not solid.above:
            _draw_solid(canvas, solid, draw)
    for loose in scene.loose:
        canvas.line(curve(loose.points), loose.width, np.array(HUES[loose.hue]), THREAD)
    for pair, state in zip(scene.pairs, states, strict=True):
        _draw_thread(canvas, pair, state, scene)
    for i, (pair, state) in enumerate(zip(scene.pairs, states, strict=True)):
        _draw_discs(canvas, pair, state, Draw(*scene.texture_key, 2, i))
    for solid, draw in grounds:
        if solid.above:
            _draw_solid(canvas, solid, draw)
    return np.clip(canvas.image, 0, 255).astype(np.uint8), canvas.labels
