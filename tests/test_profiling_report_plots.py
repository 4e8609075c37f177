"""The plots: what their axes, legends and labels say, before they become pictures."""

import io
from itertools import combinations

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from linescan.profiling.report import bars, plots
from linescan.profiling.report.data import Report
from linescan.profiling.report.labels import text_box
from linescan.profiling.report.style import COLOURS, DPI, category_colours, looks, png

SIZES = ((224, 224), (512, 512), (1024, 1024), (512, 1024), (2048, 2048))


def make_row(kind, name, condition, result):
    provenance = {"device": "CPU", "device_type": "cpu", "threads": 2, "versions": {}}
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": provenance}


def speed_row(name, size, latency, *, mode="forward", batch=1, dtype="fp32"):
    spread = {"median": latency, "p20": 0.9 * latency, "p80": 1.2 * latency}
    condition = {"size": list(size), "batch": batch, "dtype": dtype, "mode": mode}
    return make_row("speed", name, condition, {"latency_ms": spread, "images_per_s": spread, "ratio": spread})


def make_rows(names=("scan", "twin"), exponents=(1.0, 1.8), sizes=SIZES):
    """The second name is the baseline of the first."""
    held = [{}, {"role": "baseline", "of": [names[0]]}] + [{}] * len(names)
    rows = [make_row("model", name, condition, {"parameters": 10}) for name, condition in zip(names, held, strict=False)]
    for index, name in enumerate(names):
        exponent = exponents[index % len(exponents)]
        rows += [speed_row(name, size, 1e-3 * (1 + index / 10) * (size[0] * size[1]) ** exponent) for size in sizes]
        rows.append(make_row("accuracy", name, {"split": "val"}, {"mIoU": 40.0 + 7 * index % 11}))
    return rows


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_latency_axes_and_slopes():
    figure = plots.latency(Report(make_rows()))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["224", "512", "512x1024", "1024", "2048"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert texts(axes) == ["scan, slope 1.00", "twin (baseline), slope 1.80"]
    assert "number of pixels" in axes.get_legend().get_title().get_text()
    assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "--"]
    bands = axes.collections
    assert len(bands) == 2 and bands[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(1.2e-3 * 2048**2)


def test_modes_and_dtypes_have_panels_of_their_own():
    rows = make_rows(sizes=SIZES[:2])
    rows += [speed_row("scan", size, 5.0 + size[0], mode="training step") for size in SIZES[:2]]
    rows += [speed_row("scan", size, 5.0 + size[0], dtype="bf16") for size in SIZES[:2]]
    rows += [speed_row("scan", SIZES[0], 5.0, batch=8)]  # one size: nothing to draw it against
    titles = [axes.get_title() for axes in plots.latency(Report(rows)).axes]
    assert titles == ["forward, fp32, batch 1", "forward, bf16, batch 1", "training step, fp32, batch 1"]


def test_no_slope_from_one_size_and_no_plot_without_two():
    rows = [*make_rows(sizes=SIZES[:2]), speed_row("third", SIZES[0], 3.0)]
    assert "third" in texts(plots.latency(Report(rows)).axes[0])
    assert plots.latency(Report(make_rows(sizes=SIZES[:1]))) is None
    assert plots.memory(Report(rows)) is None and bars.operators(Report(rows)) is None


def test_a_peak_that_rounds_to_zero_is_left_out():
    setting = {"batch": 1, "dtype": "fp32", "mode": "forward"}
    peaks = {224: 0.0, 512: 4.0, 1024: 16.0}
    rows = [make_row("memory", "a", {"size": [side, side], **setting}, {"peak_mib": peak}) for side, peak in peaks.items()]
    (axes,) = plots.memory(Report(rows)).axes
    assert list(axes.get_lines()[0].get_xdata()) == [512.0, 1024.0] and texts(axes) == ["a, slope 1.00"]


def test_the_legend_is_clear_of_the_axis():
    for sizes in (SIZES, ((500, 500), (512, 512))):  # close sizes are written at an angle
        figure = plots.latency(Report(make_rows(sizes=sizes)))
        figure.draw_without_rendering()
        (axes,), renderer = figure.axes, figure.canvas.get_renderer()
        label = axes.xaxis.label.get_window_extent(renderer)
        assert not axes.get_legend().get_window_extent(renderer).overlaps(label)


def test_out_of_memory_is_a_cross_in_the_colour_of_the_model():
    lost = {"size": [2048, 2048], "batch": 1, "dtype": "fp32", "mode": "forward"}
    rows = [row for row in make_rows() if not (row["kind"] == "speed" and row["name"] == "twin" and row["condition"]["size"][0] == 2048)]
    axes = plots.latency(Report([*rows, make_row("speed", "twin", lost, {"error": "out of memory", "message": ""})])).axes[0]
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x" and len(line.get_xdata())]
    assert [to_hex(line.get_color()).upper() for line in crosses] == [COLOURS[1]]
    assert crosses[0].get_xdata()[0] == 2048 and texts(axes)[-1] == "out of memory"


def labels(axes):
    return [text for text in axes.texts if text.get_text()]


def crowded(names):
    """Points within a few pixels of each other, and one far from them, which sets the scale."""
    rows = [speed_row(name, (8, 8), 10.0 + 0.02 * i) for i, name in enumerate(names)]
    rows += [make_row("accuracy", name, {"split": "val"}, {"mIoU": 50 + 0.1 * (i % 3)}) for i, name in enumerate(names)]
    return [*rows, speed_row("far", (8, 8), 90.0), make_row("accuracy", "far", {"split": "val"}, {"mIoU": 90.0})]


@pytest.mark.parametrize(
    ("rows", "count", "by_number"),
    [
        (make_rows(["scan", "twin", "c", "d"], exponents=(1.0,), sizes=SIZES[:2]), 4, False),
        (make_rows([f"{i:02}-{'x' * 38}" for i in range(12)], exponents=(1.0,), sizes=SIZES[:2]), 12, True),
        (crowded([f"hybrid:small:number_{i}" for i in range(5)]), 6, False),
        (crowded([f"{i}-{'x' * 38}" for i in range(16)]), 17, True),
    ],
)
def test_points_are_labelled_without_overlap(rows, count, by_number):
    figure = plots.accuracy_latency(Report(rows))
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text_box(label, renderer) for label in labels(axes)]
        assert len(boxes) == count
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        frame = axes.get_window_extent(renderer)
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
        numbers = {label.get_text() for label in labels(axes)} == {str(i + 1) for i in range(count)}
        assert numbers == by_number
    listed = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert len(listed) == (count if by_number else 0)
    below = Image.open(io.BytesIO(png(figure))).height - figure.get_figheight() * DPI
    assert (below > 0.15 * DPI * count) == by_number, "the list of names stands below the figure and is not cut off"


def test_front_runs_through_the_models_that_none_beats():
    rows = [speed_row(name, (8, 8), latency) for name, latency in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    rows += [make_row("accuracy", name, {"split": "val"}, {"mIoU": miou}) for name, miou in (("a", 30.0), ("b", 50.0), ("c", 40.0))]
    axes = plots.accuracy_latency(Report(rows)).axes[0]
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert list(zip(*front.get_data(), strict=True))[1:-1] == [(1.0, 30.0), (2.0, 50.0)]
    assert axes.get_ylabel() == "mIoU on val, %"


def test_accuracy_is_drawn_where_both_were_measured():
    rows = make_rows(sizes=SIZES[:1])
    assert plots.accuracy_latency(Report([row for row in rows if row["kind"] != "accuracy"])) is None
    assert plots.accuracy_latency(Report([row for row in rows if row["kind"] != "speed"])) is None
    rows += [speed_row("scan", SIZES[0], 9.0, mode="training step"), speed_row("scan", SIZES[0], 9.0, batch=8)]
    assert [axes.get_title() for axes in plots.accuracy_latency(Report(rows)).axes] == ["224 pixels, forward, fp32, batch 1"]


def test_several_seeds_are_one_point_at_their_mean():
    rows = make_rows(sizes=SIZES[:1])
    rows += [make_row("accuracy", "scan", {"split": "val", "seed": 1}, {"mIoU": 60.0})]
    assert Report(rows).accuracy == ("val", {"scan": 50.0, "twin": 47.0})


def test_bars_add_up_to_the_time():
    setting = {"size": [512, 512], "batch": 1, "dtype": "fp32", "mode": "forward"}
    times = {"scan": {"linear": 3.0, "convolution": 1.0}, "twin": {"attention": 6.0, "linear": 2.0}}
    rows = [make_row("operators", name, setting, {"milliseconds": parts}) for name, parts in times.items()]
    figure = bars.operators(Report(rows))
    (axes,) = figure.axes
    widths = [(round(patch.get_y() + patch.get_height() / 2), patch.get_x(), patch.get_width()) for patch in axes.patches]
    assert [width for width in widths if width[2]] == [(0, 0.0, 1.0), (0, 1.0, 3.0), (1, 0.0, 2.0), (1, 2.0, 6.0)]
    assert {"4.00 ms", "8.00 ms", "75 %", "25 %"} <= {text.get_text() for text in axes.texts}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["convolution", "linear", "attention"]


def test_many_parts_become_twelve_and_none_is_lost():
    parts = {f"stage{i}": float(i + 1) * 1e9 for i in range(30)}
    rows = [make_row("cost", "a", {"size": [8, 8]}, {"macs": 1, "macs_by_operator": parts})]
    figure = bars.macs(Report(rows))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 12 and names[-1] == "smaller parts" and "stage29" in names and "stage0" not in names
    assert sum(patch.get_width() for patch in figure.axes[0].patches) == pytest.approx(sum(parts.values()) / 1e9)


def test_colours_are_different_and_fixed():
    style = looks(Report(make_rows([f"m{i}" for i in range(13)])))
    assert len({look.colour for look in style.values()}) == 13
    assert category_colours(["scan", "linear"])["scan"] == category_colours(["scan"])["scan"]
    many = category_colours(["scan", *(f"x{i}" for i in range(11))])
    assert len(set(many.values())) == 12
