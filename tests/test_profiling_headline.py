"""README's picture: costs of large images on the left, trained networks on the right, whatever order the rows come in."""

import random

import pytest

from linescan.profiling.figures import FIGURES, colours_and_markers

TRAINED = "hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240"


def speed(name, size, ms):
    condition = {"size": size, "batch": 1, "mode": "forward", "reference": name}
    return dict(kind="speed", name=name, condition=condition, result={"latency_ms": dict(median=ms, p20=ms - 1, p80=ms + 1)})


def model(name):
    return dict(kind="model", name=name, condition={}, result=dict(parameters=1e6))


@pytest.mark.parametrize("seed", range(3))
def test_each_network_stands_in_its_panel(seed):
    rows = [model(name) for name in ("hybrid:small:bi_wkv", "timm:swin_tiny", TRAINED)]
    rows += [speed("hybrid:small:bi_wkv", [384, 512], 300.0), speed("hybrid:small:bi_wkv", [1536, 2048], 6000.0)]
    rows += [speed("timm:swin_tiny", [384, 512], 400.0), speed("timm:swin_tiny", [1536, 2048], 5000.0), speed(TRAINED, [180, 240], 50.0)]
    rows.append(dict(kind="accuracy", name=TRAINED, condition=dict(seed=0), result=dict(mIoU=30.0)))
    random.Random(seed).shuffle(rows)
    left, right = FIGURES["headline"](rows).axes
    labels = {text.get_text(): container[0].get_data() for text, container in zip(left.get_legend().texts, left.containers, strict=True)}
    drawn = {label: [list(map(float, values)) for values in data] for label, data in labels.items()}
    assert drawn == {"hybrid small, Bi-WKV": [[512, 2048], [0.3, 6.0]], "Swin-T": [[512, 2048], [0.4, 5.0]]}
    assert [list(map(float, values)) for values in right.containers[0][0].get_data()] == [[50.0], [30.0]]
    colours = {text.get_text(): container[0].get_color() for text, container in zip(left.get_legend().texts, left.containers, strict=True)}
    assert right.containers[0][0].get_color() == colours["hybrid small, Bi-WKV"] != colours["Swin-T"], "one colour per mixer"


def test_networks_of_one_mixer_are_told_apart():
    looks = colours_and_markers(["hybrid:small:attention", "hybrid:tiny:attention", "timm:swin_tiny", "vrwkv:tiny", TRAINED])
    assert len({tuple(look.values()) for look in looks.values()}) == 5
    assert colours_and_markers([TRAINED])[TRAINED] == looks[TRAINED], "alike in every picture"
