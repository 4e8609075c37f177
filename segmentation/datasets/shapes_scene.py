"""Scenes of the shapes data: what is in an image, as plain numbers, drawn from (seed, split, index) alone.

A scene holds one or two pairs of discs. A thin thread leaves each disc of a pair and runs to a place called the joint, far from every disc
of the image. Either the thread passes the joint (both discs are `linked`) or it is cut there and both ends carry a knot (both are `free`).
Each pair has a hue of its own, so that a knot tells which pair it belongs to. Loose threads, in hues that no pair uses, belong to no disc.

Coordinates are integers in half pixels: the pixel in row y, column x covers [2y, 2y + 2) x [2x, 2x + 2). Nothing here uses floating point
except a table of directions that is rounded far from ties, and random numbers come from the raw PCG64 stream, which numpy keeps fixed over
its versions (the methods of numpy's Generator are not), so a scene is the same on every machine.
"""

from dataclasses import dataclass

import numpy as np

HUES = ((226, 58, 58), (240, 196, 48), (64, 190, 76), (66, 104, 232))  # RGB
MARGIN = 64  # pixels, Chebyshev, between a joint and every disc
CUT = 7  # half the width of a cut, pixels
KNOT_RADIUS = 6  # radius of a knot, pixels
PAIRS = (1, 2)  # how many pairs, each as likely
LOOSE = (0, 1, 2)  # how many loose threads, each as likely
SMALLEST = 48  # pixels, the shortest side that holds a scene
BLOCK, TRIANGLE, RING, THREAD, KNOT, LINKED, FREE = range(1, 8)  # labels; 0 is the background
DIRECTIONS = np.rint(1024 * np.stack([np.cos(np.arange(64) * np.pi / 32), np.sin(np.arange(64) * np.pi / 32)], 1)).astype(np.int64)

Point = tuple[int, int]  # (x, y), half pixels


class Draw:
    """Random integers from the raw PCG64 stream keyed by non-negative integers."""

    def __init__(self, *key: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return (int(self._bits.random_raw()) >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """A number in [low, high], both included; `low` if the range is empty."""
        return low + self.below(max(1, high - low + 1))

    def sample(self, n: int, k: int) -> list[int]:
        """k different numbers in [0, n), in random order."""
        rest = list(range(n))
        return [rest.pop(self.below(len(rest))) for _ in range(k)]

    def bytes(self, *shape: int) -> np.ndarray:
        """uint8 of the given shape, uniform."""
        count = int(np.prod(shape))
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


@dataclass(frozen=True)
class Disc:
    centre: Point
    radius: int  # half pixels


@dataclass(frozen=True)
class Pair:
    """Two discs, the halves of their thread (control points of a cubic curve, from the disc to the joint), and whether it is cut."""

    discs: tuple[Disc, Disc]
    halves: tuple[tuple[Point, ...], tuple[Point, ...]]
    joint: Point
    hue: int
    width: int  # of the thread: 2 or 4 half pixels
    cut: bool


@dataclass(frozen=True)
class Loose:
    """A thread that belongs to no disc; its ends are plain."""

    points: tuple[Point, ...]
    hue: int
    width: int


@dataclass(frozen=True)
class Solid:
    """A textured object. `corners` (clockwise) for a block or triangle; None for a ring, whose inner radius is `hole`."""

    label: int
    centre: Point
    radius: int
    corners: tuple[Point, ...] | None
    hole: int
    above: bool  # drawn over threads and discs


@dataclass(frozen=True)
class Scale:
    """Lengths in pixels for an image size: full in images of 128 px and more, shrinking below.

    A cut changes no pixel farther than `joint` (Chebyshev) from the centre of its joint, and every pixel of every disc is at least `margin`
    away from every such square.
    """

    margin: int
    cut: int  # half the width of a cut
    knot: int  # radius of the knot on an open end
    joint: int
    disc: tuple[int, int]  # smallest and largest radius


@dataclass(frozen=True)
class Scene:
    size: tuple[int, int]  # (H, W), pixels
    scale: Scale
    pairs: tuple[Pair, ...]
    loose: tuple[Loose, ...]
    solids: tuple[Solid, ...]
    texture_key: tuple[int, ...]


def scale_of(size: tuple[int, int], margin: int = MARGIN) -> Scale:
    """The lengths for (H, W) pixels. The margin is `margin`, or half the longer side where that is less."""
    if min(size) < SMALLEST:
        raise ValueError(f"size: expected (H, W) of at least {SMALLEST} px each, got {tuple(size)}")
    if margin < 1:
        raise ValueError(f"margin: expected a positive number of pixels, got {margin}")
    short, long = min(size), max(size)
    cut, knot = max(2, min(CUT, long // 20)), max(1, min(KNOT_RADIUS, long // 20))
    smallest = max(2, min(9, short // 16))
    return Scale(min(margin, long // 2), cut, knot, cut + knot + 2, (smallest, max(smallest, min(15, short // 12))))


def curve(points: tuple[Point, ...]) -> np.ndarray:
    """The cubic Bezier curve of four control points: (n, 2) int64 half pixels, neighbours at most one half pixel apart in x and y."""
    p = np.array(points, np.int64)
    n = int(3 * np.abs(np.diff(p, axis=0)).max()) + 1
    i = np.arange(n + 1, dtype=np.int64)[:, None]
    j = n - i
    total = j**3 * p[0] + 3 * j**2 * i * p[1] + 3 * j * i**2 * p[2] + i**3 * p[3]
    return (2 * total + n**3) // (2 * n**3)


def _near(points: np.ndarray, centre: Point, distance: int) -> np.ndarray:
    """Which points lie within `distance` (Chebyshev) of `centre`."""
    return np.abs(points - np.array(centre)).max(1) <= distance


class _Sampler:
    """Draws one scene. Works in pixels where it places things and hands out half pixels."""

    def __init__(self, size: tuple[int, int], margin: int, draw: Draw):
        self.size, self.draw, self.scale = size, draw, scale_of(size, margin)
        self.clear = 2 * self.scale.joint + 4  # half pixels kept free around a joint

    def _place(self, room: np.ndarray) -> Point | None:
        """A pixel of the mask `room` (H, W), uniformly, as (x, y); None if there is none."""
        free = np.flatnonzero(room)
        if not len(free):
            return None
        y, x = divmod(int(free[self.draw.below(len(free))]), room.shape[1])
        return x, y

    def _room(self, inset: int) -> np.ndarray:
        room = np.zeros(self.size, bool)
        room[inset : self.size[0] - inset, inset : self.size[1] - inset] = True
        return room

    @staticmethod
    def _block(room: np.ndarray, at: Point, distance: int) -> None:
        """Takes the pixels nearer than `distance` (Chebyshev) to `at` out of the room."""
        x, y = at
        room[max(0, y - distance + 1) : y + distance, max(0, x - distance + 1) : x + distance] = False

    def _layout(self, pairs: int) -> tuple[list[Point], list[Disc]] | None:
        """Joints, and two discs per joint, every disc far from every joint; pixels. None if the first choices leave no room."""
        scale = self.scale
        joints: list[Point] = []
        room = self._room(scale.joint + 1)
        for _ in range(pairs):
            if (at := self._place(room)) is None:
                return None
            joints.append(at)
            self._block(room, at, 2 * scale.joint + 3)
        discs: list[Disc] = []
        for index in range(2 * pairs):
            radius = self.draw.between(*scale.disc)
            room = self._room(radius + 1)
            for joint in joints:
                self._block(room, joint, scale.margin + scale.joint + radius + 1)
            for other, disc in enumerate(discs):
                partner = other == index - 1 and index % 2 == 1
                self._block(room, disc.centre, min(self.size) // 3 if partner else disc.radius + radius + 3)
            if (at := self._place(room)) is None:
                return None
            discs.append(Disc(at, radius))
        return joints, discs

    def _clamp(self, x: int, y: int) -> Point:
        return max(4, min(2 * self.size[1] - 5, x)), max(4, min(2 * self.size[0] - 5, y))

    def _halves(self, discs: list[Disc], joint: Point, others: list[Point]) -> tuple[tuple[Point, ...], ...] | None:
        """Control points of the two halves of a thread, smooth at the joint, keeping clear of the other joints; None if no try succeeds."""
        for _ in range(24):
            aim = DIRECTIONS[self.draw.below(64)]
            halves = []
            for sign, disc in zip((1, -1), discs, strict=True):
                (x, y), (jx, jy) = disc.centre, joint
                reach = max(abs(x - jx), abs(y - jy))
                lead = reach * self.draw.between(300, 600) // 1000
                bend = [self.draw.between(-reach // 3, reach // 3) for _ in range(2)]
                first = self._clamp((2 * x + jx) // 3 + bend[0], (2 * y + jy) // 3 + bend[1])
                second = self._clamp(jx + sign * lead * int(aim[0]) // 1024, jy + sign * lead * int(aim[1]) // 1024)
                halves.append((disc.centre, first, second, joint))
            lines = [curve(half) for half in halves]
            returns = any((np.diff(_near(line, joint, self.clear).astype(np.int8)) != 0).sum() != 1 for line in lines)
            if not returns and not any(_near(line, other, self.clear).any() for line in lines for other in others):
                return tuple(halves)
        return None

    def pairs(self, hues: list[int], wanted: int) -> tuple[Pair, ...]:
        """`wanted` pairs, or fewer where the image has no room for them; at least one."""
        for attempt in range(4000):
            count = max(1, wanted - attempt // 40)
            if (layout := self._layout(count)) is None:
                continue
            joints = [(2 * x + 1, 2 * y + 1) for x, y in layout[0]]
            discs = [Disc((2 * d.centre[0] + 1, 2 * d.centre[1] + 1), 2 * d.radius) for d in layout[1]]
            halves = [self._halves(discs[2 * i : 2 * i + 2], joint, joints[:i] + joints[i + 1 :]) for i, joint in enumerate(joints)]
            if all(halves):
                return tuple(
                    Pair((discs[2 * i], discs[2 * i + 1]), halves[i], joint, hues[i], 2 + 2 * self.draw.below(2), bool(self.draw.below(2)))
                    for i, joint in enumerate(joints)
                )
        raise RuntimeError(f"no scene found for size {self.size}, margin {self.scale.margin}")

    def loose(self, pairs: tuple[Pair, ...], hues: list[int], wanted: int) -> tuple[Loose, ...]:
        """Up to `wanted` loose threads that keep clear of the joints; those without room are left out."""
        found = []
        for index in range(wanted):
            for _ in range(8):
                points = [self._clamp(self.draw.below(2 * self.size[1]), self.draw.below(2 * self.size[0])) for _ in range(4)]
                far = max(abs(points[0][0] - points[3][0]), abs(points[0][1] - points[3][1])) >= min(self.size)
                if far and not any(_near(curve(tuple(points)), pair.joint, self.clear).any() for pair in pairs):
                    found.append(Loose(tuple(points), hues[index % len(hues)], 2 + 2 * self.draw.below(2)))
                    break
        return tuple(found)

    def solids(self, pairs: tuple[Pair, ...], below: int, above: int) -> tuple[Solid, ...]:
        """Textured objects. Those above lie on a thread, off the joints, and leave the centre of every disc in sight."""
        found = []
        short = min(self.size)
        lines = [curve(half) for pair in pairs for half in pair.halves]
        for index in range(below + above):
            on_top = index >= below
            for _ in range(12):
                radius = self.draw.between(short // 5, short // 3) if on_top else self.draw.between(short // 4, short * 3 // 5)
                if on_top:
                    line = lines[self.draw.below(len(lines))]
                    x, y = (int(v) for v in line[self.draw.below(len(line))])
                else:
                    x, y = self.draw.below(2 * self.size[1]), self.draw.below(2 * self.size[0])
                hidden = any(_near(np.array([pair.joint]), (x, y), radius + self.clear)[0] for pair in pairs)
                covers = any((d.centre[0] - x) ** 2 + (d.centre[1] - y) ** 2 < (radius + 2) ** 2 for pair in pairs for d in pair.discs)
                if not on_top or not (hidden or covers):
                    found.append(self._solid((x, y), radius, on_top))
                    break
        return tuple(found)

    def _solid(self, centre: Point, radius: int, above: bool) -> Solid:
        label = (BLOCK, TRIANGLE, TRIANGLE, RING, RING)[self.draw.below(5)]  # a block covers the most pixels
        turn, spread = self.draw.below(64), self.draw.between(5, 11)  # in 64ths of a turn
        hole = radius * self.draw.between(45, 65) // 100
        if label == RING:
            return Solid(label, centre, radius, None, hole, above)
        angles = (0, 21, 43) if label == TRIANGLE else (-spread, spread, 32 - spread, 32 + spread)
        corners = np.array(centre) + radius * DIRECTIONS[[(turn + a) % 64 for a in angles]] // 1024
        return Solid(label, centre, radius, tuple((int(x), int(y)) for x, y in corners), 0, above)


def sample_scene(size: tuple[int, int], key: tuple[int, ...], *, margin: int = MARGIN) -> Scene:
    """The scene of the key, for instance (seed, split, index), for an image of size (H, W) pixels.

    Raises ValueError if the size is under 48 px on a side.
    """
    draw = Draw(*key, 0)
    sampler = _Sampler(tuple(size), margin, draw)
    hues = draw.sample(len(HUES), len(HUES))
    pairs = sampler.pairs(hues, PAIRS[draw.below(len(PAIRS))])
    loose = sampler.loose(pairs, hues[len(pairs) :], LOOSE[draw.below(len(LOOSE))])
    solids = sampler.solids(pairs, draw.between(2, 4), draw.between(1, 2))
    return Scene(tuple(size), sampler.scale, pairs, loose, solids, (*key, 1))
