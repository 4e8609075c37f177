"""The two disc classes differ in far context alone: no window of 64 px that sees a disc sees what decides its class."""

import numpy as np
import pytest

from linescan.segmentation.datasets.shapes_render import render
from linescan.segmentation.datasets.shapes_scene import FREE, KNOT, LINKED, THREAD, curve, sample_scene, scale_of

SIZES = [(128, 128), (128, 192), (191, 257), (256, 256), (90, 300), (64, 64), (48, 81), (48, 48)]


def span(mask: np.ndarray) -> np.ndarray:
    """Rows and columns (n, 2) of the set pixels."""
    return np.argwhere(mask)


def nearest(first: np.ndarray, second: np.ndarray) -> int:
    """The smallest Chebyshev distance between two sets of pixels."""
    return int(np.abs(first[:, None] - second[None]).max(-1).min())


def scenes(size: tuple[int, int], count: int = 25):
    return (sample_scene(size, (7, 0, index)) for index in range(count))


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_what_decides_a_disc_lies_a_margin_away(size):
    margin = scale_of(size).margin
    assert margin == min(64, max(size) // 2)
    for scene in scenes(size):
        linked_image, linked = render(scene, cut=False)
        free_image, free = render(scene, cut=True)
        image_differs = (linked_image != free_image).any(-1)
        label_differs = linked != free
        # Discs: every linked pixel becomes free, none of them changes its colours.
        disc = np.isin(linked, (LINKED, FREE))
        assert (linked[disc] == LINKED).all() and (free[disc] == FREE).all() and disc.any()
        assert not (disc & image_differs).any()
        # Elsewhere a label differs only where the cut is seen: no thread any more, or a knot instead.
        rest = label_differs & ~disc
        assert ((linked[rest] == THREAD) | (free[rest] == KNOT)).all()
        # A window of `margin` px spans margin - 1 from its first to its last pixel, so a distance of `margin` keeps the two apart.
        assert image_differs.any()
        assert nearest(span(disc), span(image_differs | rest)) >= margin


def test_one_pair_alone_can_be_cut():
    seen = 0
    for scene in scenes((192, 192), 40):
        if len(scene.pairs) == 2:
            seen += 1
            base_image, base = render(scene, cut=(False, False))
            image, labels = render(scene, cut=(True, False))
            x, y = (v // 2 for v in scene.pairs[0].joint)
            changed = span((image != base_image).any(-1))
            assert (np.abs(changed - (y, x)).max(1) <= scene.scale.joint).all()
            assert LINKED in labels and FREE in labels and FREE not in base
    assert seen > 10


def test_states_of_another_number_of_pairs_are_refused():
    scene = sample_scene((64, 64), (0, 0, 0))
    with pytest.raises(ValueError, match="cut: expected one bool or one for each of"):
        render(scene, cut=(True,) * 3)


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (90, 300)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_free_discs_keep_stubs_as_long_as_the_margin(size):
    for scene in scenes(size):
        for pair in scene.pairs:
            for disc, half in zip(pair.discs, pair.halves, strict=True):
                line = curve(half)
                outside = ((line - np.array(disc.centre)) ** 2).sum(1) > disc.radius**2
                uncut = ((line - np.array(pair.joint)) ** 2).sum(1) > (2 * scene.scale.cut) ** 2
                steps = np.abs(np.diff(line[outside & uncut], axis=0)).max(1).sum()  # Chebyshev length, at most the length of the line
                assert steps >= 2 * scene.scale.margin


def test_a_linked_thread_is_one_piece():
    for scene in scenes((160, 160)):
        for pair in scene.pairs:
            for half in pair.halves:
                assert np.abs(np.diff(curve(half), axis=0)).max() <= 1
            assert pair.halves[0][-1] == pair.halves[1][-1] == pair.joint
            assert all(half[0] == disc.centre for half, disc in zip(pair.halves, pair.discs, strict=True))


def test_the_state_is_a_fair_coin_independent_of_the_scene():
    """1200 pairs: half of them cut, also among the left and right, small and large, each hue, one and two pairs, thin and thick."""
    rows = []
    for index in range(800):
        scene = sample_scene((128, 128), (11, 0, index))
        for pair in scene.pairs:
            (x, y), radius = pair.discs[0].centre, pair.discs[0].radius
            rows.append((pair.cut, x, y, radius, pair.hue, len(scene.pairs), pair.width, pair.joint[0], pair.joint[1], len(scene.loose)))
    table = np.array(rows)
    cut, features = table[:, 0], table[:, 1:]
    assert abs(cut.mean() - 0.5) < 4 * 0.5 / len(cut) ** 0.5
    for column in features.T:
        values = column if len(np.unique(column)) <= 4 else column > np.median(column)
        for value in np.unique(values):
            group = cut[values == value]
            assert abs(group.mean() - 0.5) < 4.5 * 0.5 / len(group) ** 0.5


def test_the_loose_threads_and_solids_do_not_depend_on_the_state():
    """A pair of renderings differs inside the joints' squares alone, so nothing else can tell the state."""
    for scene in scenes((128, 128), 30):
        difference = (render(scene, cut=False)[0] != render(scene, cut=True)[0]).any(-1)
        for pair in scene.pairs:
            x, y = (v // 2 for v in pair.joint)
            difference[
                max(0, y - scene.scale.joint) : y + scene.scale.joint + 1, max(0, x - scene.scale.joint) : x + scene.scale.joint + 1
            ] = False
        assert not difference.any()
