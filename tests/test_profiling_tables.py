"""What tables and figures make of rows; that the pages hold what the committed rows say is in test_docs.py."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from linescan.profiling import write_rows
from linescan.profiling.figures import draw_figures, latency_by_tokens, outdated_figures, picture
from linescan.profiling.report.style import digest
from linescan.profiling.tables import (
    backbones,
    classifier_configs,
    configs,
    digits,
    kernel_growth,
    kernel_ratios,
    macs,
    parameters,
    side_by_side,
    tradeoffs,
    training_steps,
)
from linescan.profiling.tables.configs import config_rows
from linescan.profiling.tables.names import backbone_of, place

SCALE = "test_dataloader.dataset.pipeline.1.scale"
NETS = ("mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240", "hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240")


def row(kind, name, condition, result):
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": {}}


def profile_rows(reference=NETS[1]):
    """Two networks at two sizes: times 10 and 40 ms, twice as long for the second; only the first has accuracies, 30 and 35 %."""
    spread = {"median": 1.0, "p20": 0.5, "p80": 2.0}
    rows = []
    for factor, name in enumerate(NETS, 1):
        rows.append(row("model", name, {}, {"parameters": factor * 1e6}))
        for size, ms in (((60, 80), 10), ((120, 160), 40)):
            at = {"size": list(size), "batch": 1, "mode": "forward"}
            times = {key: factor * ms * value for key, value in spread.items()}
            rows.append(row("cost", name, {"size": list(size)}, {"macs": 1.25e9 * factor * ms}))
            rows.append(row("speed", name, at | {"reference": reference}, {"latency_ms": times, "ratio": spread}))
            rows.append(row("memory", name, at, {"peak_mib": 7.4 * ms}))
            if factor == 1:
                rows.append(row("accuracy", name, {"options": {SCALE: [size[1], size[0]]}}, {"mIoU": 30 + 5 * (ms > 10), "aAcc": 80.0}))
    return rows


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_tradeoffs():
    head, _, *body = cells(tradeoffs(profile_rows()))
    assert head == ["network", "parameters, M", "image", "GMACs", "ms", "peak MiB", "mIoU, %", "pixels right, %"]
    assert body == [
        ["DeepLabV3+ MobileNetV2", "1.00", "60x80", "12.50", "10.0 (5.0 to 20.0)", "74", "30.0", "80.0"],
        ["", "", "120x160", "50.00", "40.0 (20.0 to 80.0)", "296", "35.0", "80.0"],
        ["hybrid tiny, Bi-WKV", "2.00", "60x80", "25.00", "20.0 (10.0 to 40.0)", "74", "not trained", "not trained"],
        ["", "", "120x160", "100.00", "80.0 (40.0 to 160.0)", "296", "not trained", "not trained"],
    ]


def test_of_a_repeated_measurement_the_last_counts():
    rows = profile_rows()
    rows += [row("memory", NETS[0], {"size": [60, 80], "batch": 1, "mode": "forward"}, {"peak_mib": 1.0})]
    assert cells(tradeoffs(rows))[2][5] == "1"


def test_batches_are_told_apart():
    rows = profile_rows()
    for mode, ms in (("forward", 30.0), ("training step", 90.0)):
        at = {"size": [60, 80], "batch": 8, "mode": mode}
        rows.append(row("speed", NETS[0], at, {"latency_ms": {"median": ms, "p20": ms, "p80": ms}}))
        rows.append(row("memory", NETS[0], at, {"peak_mib": 2 * ms}))
    assert tradeoffs(rows) == tradeoffs(profile_rows())
    assert cells(training_steps(rows))[2:] == [["DeepLabV3+ MobileNetV2", "60x80", "30 (30 to 30)", "90 (90 to 90)", "60", "180"]]


def test_what_all_are_held_against_comes_first():
    head, _, first, second = cells(side_by_side(profile_rows()))
    assert head[-2:] == ["speed to hybrid tiny, Bi-WKV 60", "120"]
    assert (first[0], second[0]) == ("hybrid tiny, Bi-WKV", "DeepLabV3+ MobileNetV2") and second[2:6] == ["12.5", "50.0", "10", "40"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.012345, "0.0123"), (5.07, "5.07"), (26.49, "26.5"), (3344.2, "3344"), (47611.9, "47612"), (-1.5, "-1.50")],
)
def test_digits(value, text):
    assert digits(value) == text


def kernel_row(shape, provider, mode, metric, median):
    condition = {"axes": "B T C", "shape": shape, "provider": provider, "mode": mode}
    return row("kernel", "bi_wkv", condition, {metric: {"median": median, "p20": median / 2, "p80": median * 2}})


def test_kernel_ratios():
    """Attention has no ratio of its own, and a shape that was not measured in all modes is left out."""
    rows = [
        kernel_row([1, size, 8], op, mode, "latency_ms", 3.0) for size in (64, 96) for op in ("torch", "sdpa") for mode in ("fwd", "bwd")
    ]
    rows += [kernel_row([1, 64, 8], op, mode, "ratio_to_sdpa", 0.123) for op in ("torch", "c") for mode in ("fwd", "bwd")]
    rows += [kernel_row([1, 96, 8], op, "fwd", "ratio_to_sdpa", 2.5) for op in ("torch", "c")]
    ratio = "0.12 (0.061 to 0.25)"
    assert cells(kernel_ratios(rows)) == [
        ["(B, T, C)", "backend", "forward", "backward"],
        ["---"] * 4,
        ["(1, 64, 8)", "`c`", ratio, ratio],
        ["", "`torch`", ratio, ratio],
    ]
    only = [r for r in rows if r["condition"]["provider"] != "c" and r["condition"]["mode"] == "fwd"]
    assert cells(kernel_ratios(only))[2:] == [["(1, 64, 8)", ratio], ["(1, 96, 8)", "2.5 (1.2 to 5.0)"]]


def test_kernel_growth():
    modes = ("fwd", "bwd", "fwdbwd")
    rows = [kernel_row([1, 96, 8], op, mode, "log_log_slope", value) for op, value in (("sdpa", 2.0), ("torch", 1.0)) for mode in modes]
    assert cells(kernel_growth(rows))[2:] == [["`torch`", "1.00", "1.00", "1.00"], ["attention", "2.00", "2.00", "2.00"]]


def test_macs():
    name = "hybrid:tiny:none"
    rows = [row("model", name, {}, {"parameters": 1.25e6})]
    rows += [row("cost", name, {"size": [n, n]}, {"macs": n * 1e9, "scan_ops": n * 1e7}) for n in (32, 8)]
    head, _, body = cells(macs(rows))
    assert head == ["backbone (MLP ratio 2)", "parameters, M", "GMACs 8", "32", "scan operations at 32, G"]
    assert body == ["hybrid tiny, none (control)", "1.25", "8.00", "32.0", "0.32"]


def test_parameters():
    names = ("hybrid:tiny:bi_wkv", "vmamba:tiny", "vmamba:tiny_v0", "adapter:vrwkv:tiny")
    rows = [row("model", name, {}, {"parameters": (i + 1) * 1e6, "classifier_parameters": 200_000}) for i, name in enumerate(names)]
    assert [line[:3] for line in cells(backbones(rows))[2:-1]] == [
        ["`HybridBackbone`", "tiny", "1.0"],
        ["`VMamba`", "tiny", "2.0"],
        ["`ViTAdapter`", "tiny", "4.0"],
    ]
    assert cells(parameters(rows))[3:5] == [["`VMamba`", "tiny", "2.00", "2.20"], ["", "tiny_v0", "3.00", "3.20"]]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("hybrid-gated-conv-tiny", "hybrid tiny, gated convolution (control)"),
        ("hybrid-bi-wkv6-small", "hybrid small, WKV6"),
        ("vrwkv-adapter-large", "VRWKV large, ViT-Adapter"),
        ("vmamba-tiny-m0", "VMamba tiny m0"),
        ("deit3-base", "DeiT-III base"),
        ("resnet50", "ResNet-50"),
        ("mobilenet-v2-d16", "MobileNetV2"),
    ],
)
def test_backbone_of_a_config(name, title):
    assert backbone_of(name) == title


def test_a_config_of_an_unknown_network_is_an_error():
    with pytest.raises(ValueError, match="got 'segnet-tiny'"):
        backbone_of("segnet-tiny")


def test_every_config_has_a_name_and_a_place():
    root = Path(__file__).resolve().parents[1]
    names = [path.stem for path in root.glob("configs/*/*.py") if path.parent.name != "_base_"]
    assert len(names) > 100 and all(isinstance(place(name.split("_")[0]), tuple) and backbone_of(name.split("_")[0]) for name in names)
    published = {row["name"] for row in json.loads((root / "configs" / "published.json").read_text(encoding="utf-8"))}
    assert published <= set(names)


HYBRID, DEIT = "hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240", "deit-tiny_upernet_4xb4-160k_ade20k-512x512"


def config_row(name):
    return {"kind": "config", "name": name, "condition": {"schedule": "adamw"}}


def test_configs():
    rows = [config_row(HYBRID), config_row(DEIT), {"kind": "published", "name": DEIT, "result": {"mIoU": 38.1}}]
    for scale, miou in (([240, 180], 30.0), ([480, 360], 99.0)):
        rows.append(row("accuracy", HYBRID, {"options": {SCALE: scale}}, {"mIoU": miou}))
    head, _, first, second = cells(configs(rows))
    assert head == ["data", "backbone", "head", "crop", "batch x iterations", "published mIoU, %", "mIoU, %", "config"]
    assert first == ["ADE20K", "DeiT tiny", "UPerHead", "512x512", "16 x 160k", "38.1", "not measured", f"[config]({DEIT}.py)"]
    assert second[1:] == ["hybrid tiny, Bi-WKV", "all-MLP", "180x240", "8 x 500", "none", "30.0", f"[config]({HYBRID}.py)"], (
        "at its own size"
    )
    rows += [row("accuracy", HYBRID, {"seed": 1}, {"mIoU": 31.0, "mDice": 40.0})]
    head, _, first, second = cells(configs(rows))
    assert first[6:8] == ["not measured", ""], "said once"
    assert (head[7], second[6:8]) == ("mDice, %", ["30.5 (30.0 to 31.0, 2 seeds)", "40.0"])
    rows += [row("evaluation", DEIT, {}, {"mIoU": 45.0})]
    assert cells(configs(rows))[2][6:8] == ["45.0", ""], "it has no such metric"


def test_classifier_configs(tmp_path):
    name = "vrwkv-tiny_8xb128-300e_in1k-224"
    (tmp_path / f"{name}.py").write_text('_base_ = "./other.txt"\n')
    (tmp_path / "other.txt").write_text('_base_ = ["../schedules/adamw_300e.py"]\n')
    rows = config_rows(tmp_path)
    rows += [row("classification", name, {}, {"accuracy/top1": 75.04, "train_cpu_seconds": 12.6})]
    head, _, body = cells(classifier_configs(rows))
    assert head == ["backbone", "size", "batch x epochs", "recipe", "top-1, %", "training, processor s", "config"]
    assert body == ["VRWKV tiny", "224x224", "1024 x 300", "`adamw_300e`", "75.0", "13", f"[config]({name}.py)"]
    with pytest.raises(ValueError, match="expected a folder of configs"):
        config_rows(tmp_path.parent)


def pixels(rows):
    return Image.open(io.BytesIO(picture("accuracy_by_size", rows))).tobytes()


def test_figures_are_drawn_where_a_page_names_them(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(profile_rows()))
    (tmp_path / "none.json").write_text("[]")
    assert draw_figures("text <!-- figure: accuracy_by_size rows.json none.json out.png --> text", tmp_path) == [tmp_path / "out.png"]
    assert min(Image.open(tmp_path / "out.png").size) > 300
    other = profile_rows()
    other[-1]["result"]["peak_mib"] = 0.0
    assert pixels(other) == Image.open(tmp_path / "out.png").tobytes(), "memory is not drawn"
    other[2]["result"]["latency_ms"]["median"] = 15.0
    assert pixels(other) != Image.open(tmp_path / "out.png").tobytes()


def test_a_picture_that_is_older_than_its_rows_is_found(tmp_path):
    page, rows = "<!-- figure: accuracy_by_size rows.json out.png -->", profile_rows()
    write_rows(tmp_path / "rows.json", rows)
    assert outdated_figures(page, tmp_path) == [tmp_path / "out.png"], "missing"
    draw_figures(page, tmp_path)
    assert outdated_figures(page, tmp_path) == []
    rows[-1]["result"]["peak_mib"] += 1
    write_rows(tmp_path / "rows.json", rows)
    assert outdated_figures(page, tmp_path) == [tmp_path / "out.png"], "other rows"
    draw_figures(page, tmp_path)
    Image.open(tmp_path / "out.png").save(tmp_path / "out.png")
    assert outdated_figures(page, tmp_path) == [tmp_path / "out.png"], "no digest"


def test_digests_differ_by_figure_and_by_row():
    rows = profile_rows()
    assert len({digest("a", rows), digest("b", rows), digest("a", rows[1:]), digest("a", [])}) == 4
    assert digest("a", rows) == digest("a", json.loads(json.dumps(rows)))


def test_a_sweep_is_drawn_by_tokens():
    at = {"axes": "B D L", "dtype": "float32", "mode": "fwd", "provider": "c"}
    times = {"latency_ms": {"median": 2.0, "p20": 1.0, "p80": 3.0}}
    rows = [row("kernel", "scan", at | {"shape": [1, 8, length]}, times) for length in (16, 32)]
    for one in rows:
        one["provenance"].update(device="some CPU", threads=2)
    rows.append(row("kernel", "scan", at | {"shape": [1, 8, 16]}, {"peak_mib": {"median": 1.0, "p20": 1.0, "p80": 1.0}}))
    drawn = latency_by_tokens(rows)
    assert [line.get_xydata().tolist() for line in drawn.axes[0].lines] == [[[16, 2], [32, 2]]]
    assert drawn.get_suptitle() == "scan (B D L), float32, some CPU, 2 CPU threads"


def test_an_unknown_figure_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="unknown figure 'accuracy_size', did you mean accuracy_by_size"):
        draw_figures("<!-- figure: accuracy_size rows.json out.png -->", tmp_path)
