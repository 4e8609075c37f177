"""The report: what stands in its tables, that its page is whole and closed, and that its pictures come out."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from linescan.profiling.report import markdown, terminal_table, write_report

TWIN, SCAN, DEIT = "hybrid:small:attention", "hybrid:small:bi_wkv", "timm:deit_small_patch16_224"
CONTROL = "hybrid:small:none"
SIZES = (224, 512, 1024, 2048)
ORIGIN = {
    "device": "AMD EPYC",
    "device_type": "cpu",
    "driver": None,
    "threads": 2,
    "python": "3.11.7",
    "cuda": "13.0",
    "system": "Linux x86_64",
    "versions": {"linescan": "0.1.0", "torch": "2.11.0", "triton": None},
    "commit": "cd3565d11a7f",
    "date": "2026-11-21T19:06:53Z",
    "command": "python tools/profile_model.py hybrid:small:bi_wkv",
}


def make_row(kind, name, condition, result, **origin):
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": {**ORIGIN, **origin}}


def around(value, width=0.02):
    return {"median": value, "p20": value * (1 - width), "p80": value * (1 + 1.5 * width)}


def model_rows(models, of):
    """`of`: baseline or control -> (role, models that it belongs to)."""
    rows = []
    for index, name in enumerate(models):
        role, held = of.get(name, ("model", []))
        parameters = 22_050_664 + 1_000_000 * index
        result = {
            "parameters": parameters,
            "trainable": parameters,
            "live": parameters - 384,
            "parameters_by_stage": {"stem": 20_000, "stages": parameters - 20_000},
            "parameters_by_type": {"Linear": parameters - 50_000, "Conv2d": 50_000},
        }
        reason = {"baseline": "the same network with attention", "control": "mixes no tokens"}.get(role, "")
        rows.append(make_row("model", name, {"source": name, "options": {}, "role": role, "of": held, "reason": reason}, result))
    return rows


def latency_ms(index, side, dtype, mode):
    """Attention (odd index) has a quadratic part, the others are linear; bf16 is faster, a training step three times as long."""
    tokens = (side / 16) ** 2
    value = 0.5 * tokens + (2e-4 * tokens**2 if index % 2 else 0.06 * tokens) * (1 + index / 7)
    return value * (0.6 if dtype == "bf16" else 1) * (3 if mode == "training step" else 1)


def measured_rows(models, baseline, sizes, dtypes, modes):
    rows = []
    for mode, dtype, side in ((m, d, s) for m in modes for d in dtypes for s in sizes):
        base = latency_ms(models.index(baseline), side, dtype, mode)
        for index, name in enumerate(models):
            setting = {"size": [side, side], "batch": 1, "dtype": dtype, "mode": mode}
            fixed = {"rounds": 9, "memory_format": "contiguous", "tf32": False, "reference": baseline, "largest_batch": False}
            value = latency_ms(index, side, dtype, mode)
            speed = {"latency_ms": around(value), "images_per_s": around(1e3 / value), "ratio": around(base / value)}
            peak = 84 + 30 * (side / 224) ** (3 if index % 2 else 2)
            memory = {"weights_mib": 84.0, "peak_growth_mib": peak - 84, "peak_mib": peak, "method": "resident set of a child process"}
            rows.append(make_row("speed", name, {**setting, **fixed}, speed))
            rows.append(make_row("memory", name, setting, memory))
            if mode == "forward":
                shares = {
                    "convolution": 0.3,
                    "linear": 0.4,
                    "attention" if index % 2 else "scan": 0.2,
                    "normalisation": 0.06,
                    "other": 0.04,
                }
                times = {category: share * value for category, share in shares.items()}
                top = [{"name": "aten::addmm", "calls": 49, "ms": 0.4 * value}]
                rows.append(make_row("operators", name, setting, {"milliseconds": times, "share": shares, "top": top}))
    return rows


def cost_rows(models, sizes):
    rows = []
    for index, name in enumerate(models):
        for side in sizes:
            macs = int(4_608_338_304 * (side / 224) ** 2 * (1 + index / 10))
            kinds = {"linear": macs // 2, "conv": macs // 4, "attention": macs - macs // 2 - macs // 4}
            result = {
                "macs": macs,
                "flops": 2 * macs,
                "scan_ops": 29 * 384 * 12 * (side // 16) ** 2 * (1 - index % 2),
                "bytes_moved": 3 * macs // 100,
                "macs_by_stage": {"stem": macs // 10, "stages": macs - macs // 10},
                "macs_by_operator": kinds,
                "scan_ops_by_operator": {} if index % 2 else {"linescan::bi_wkv": 29 * 384 * 12 * (side // 16) ** 2},
                "activation_bytes_by_stage": {"stem": 40 * side * side, "stages": 800 * side * side},
            }
            rows.append(make_row("cost", name, {"size": [side, side], "batch": 1}, result))
    return rows


def accuracy_rows(models):
    classes = ("background", "ring", "linked disc")
    rows = []
    for index, name in enumerate(models):
        ious = {f"IoU.{c}": 88.0 - 20 * i + math.sin(3 * index + i) for i, c in enumerate(classes)}
        result = {"mIoU": sum(ious.values()) / 3, "aAcc": 93.0, "mAcc": 75.5, **ious}
        condition = {"config": "configs/x.py", "split": "test", "checkpoint": "best.pth", "source": "results/x.json"}
        rows.append(make_row("accuracy", name, condition, result, command="python tools/compare.py", commit="aaaa"))
    return rows


def make_rows(models=(SCAN, TWIN), of=None, baseline=TWIN, sizes=SIZES, dtypes=("fp32",), modes=("forward",)):
    """Rows as a profile writes them; deterministic."""
    models = list(models)
    of = {TWIN: ("baseline", [SCAN]), CONTROL: ("control", [SCAN])} if of is None else of
    rows = model_rows(models, of) + cost_rows(models, sizes) + measured_rows(models, baseline, sizes, dtypes, modes) + accuracy_rows(models)
    for name in models:
        condition = {"size": [1024, 1024], "batch": 1, "dtype": "bf16", "device": "H100-SXM5", "source": "data sheet"}
        result = {"latency_ms": 2.5, "compute_share": 0.4, "memory_share": 0.6, "peak_mib": 300.0, "fits": True}
        rows.append(make_row("projection", name, condition, result))
    error = {"measured_over_estimated": {"median": 2.1, "p20": 1.4, "p80": 3.0}}
    rows.append(make_row("projection_error", "AMD EPYC", {"device": "AMD EPYC", "dtype": "fp32", "rows": 8}, error))
    return rows


def out_of_memory(rows, name, side):
    """The rows with one model's speed and memory at one size replaced by an error."""
    result = {"error": "out of memory", "message": "the child process was killed"}
    hit = lambda row: row["kind"] in ("speed", "memory") and row["name"] == name and row["condition"]["size"] == [side, side]  # noqa: E731
    kept = [
        {**row, "result": result} if hit(row) else row for row in rows if not (row["kind"] == "operators" and hit({**row, "kind": "speed"}))
    ]
    failed = {"size": [99, 99], "batch": 1, "dtype": "fp32", "mode": "forward", "step": "cost"}
    return kept + [make_row("error", name, failed, {"error": "ValueError", "message": "size must be a multiple of 16"})]


@pytest.fixture(scope="module")
def rows():
    return out_of_memory(make_rows([SCAN, TWIN, CONTROL, DEIT], dtypes=("fp32", "bf16"), modes=("forward", "training step")), TWIN, 2048)


@pytest.fixture(scope="module")
def few():
    return out_of_memory(make_rows(sizes=(512, 1024, 2048), modes=("forward", "training step")), TWIN, 2048)


@pytest.fixture(scope="module")
def written(few, tmp_path_factory):
    return write_report(few, tmp_path_factory.mktemp("report"))


def blocks(text):
    """Title -> lines of the blocks of a terminal table."""
    parts = [part.splitlines() for part in text.split("\n\n")]
    return {part[0]: part[1:] for part in parts if "pixels" in part[0]}


def cells(line):
    return [cell for cell in re.split(r"\s{2,}", line.strip()) if cell]


def test_terminal_block_per_size_and_setting(rows):
    found = blocks(terminal_table(rows))
    assert len(found) == 4 * 2 * 2
    lines = found["512 pixels, forward, fp32, batch 1"]
    assert [cells(line)[0] for line in lines[3:]] == [SCAN, TWIN, CONTROL, DEIT]
    latency = latency_ms(0, 512, "fp32", "forward")
    base = latency_ms(1, 512, "fp32", "forward")
    assert latency == pytest.approx(573.44) and base == pytest.approx(751.6745, abs=1e-3)
    assert cells(lines[3]) == [
        SCAN, "model", "22.05", "24.08", "0.137", "573 (562 to 591)", "1.74", "1.31 (1.28 to 1.35)", "241", "68.58",
    ]  # fmt: skip
    assert cells(lines[4])[:3] == [TWIN, "baseline", "23.05"] and "  1  " in lines[4]
    assert lines[4].startswith("  " + TWIN) and lines[5].startswith("  " + CONTROL) and not lines[6].startswith(" ")


def test_terminal_says_out_of_memory_and_why_something_failed(rows):
    text = terminal_table(rows)
    line = blocks(text)["2048 pixels, training step, bf16, batch 1"][4]
    assert cells(line)[0] == TWIN and cells(line)[5:] == ["out of memory", "-", "-", "-", "67.48"]
    assert f"{TWIN} (99, forward, fp32, cost): ValueError: size must be a multiple of 16" in text


def test_terminal_prints_conditions_once(rows):
    text = terminal_table(rows)
    for line in ("memory layout: contiguous", "TF32: off", "timed rounds: 9", "device: AMD EPYC, 2 threads", "commit: cd3565d11a7f"):
        assert text.count(f"\n{line}\n") == 1
    assert "linescan::bi_wkv: 29 B T C" in " ".join(text.split())
    assert "triton" not in text, "a package that is absent has no version"


@pytest.mark.parametrize("count", [1, 2, 12])
def test_terminal_fits_140_columns_with_long_names(count):
    names = [f"hybrid-linear-attention-small-number-{i}_upernet_4xb4-160k_ade20k-512x512" for i in range(count)]
    text = terminal_table(make_rows(names, of={}, baseline=names[0], sizes=(512, 2048)))
    assert max(map(len, text.splitlines())) <= 140
    assert all(name in text for name in names), "a name that was cut is given in full"


def test_model_without_its_baseline_has_no_ratio():
    kept = [row for row in make_rows(sizes=(224,)) if not (row["kind"] == "speed" and row["name"] == TWIN)]
    own = [
        {**row, "condition": {**row["condition"], "reference": SCAN}, "result": {**row["result"], "ratio": around(1.0, 0)}}
        if row["kind"] == "speed"
        else row
        for row in kept
    ]
    line = blocks(terminal_table(own))["224 pixels, forward, fp32, batch 1"][3]
    assert "22.05" in line and " 1 " not in line and "1.00" not in line


def test_largest_batch_has_its_own_block_with_the_batch_and_no_ratio():
    found = []
    for batch, row in zip((37, 12), (row for row in make_rows(sizes=(224,)) if row["kind"] == "speed"), strict=True):
        result = {key: value for key, value in row["result"].items() if key != "ratio"}
        condition = {**row["condition"], "batch": batch, "largest_batch": True, "reference": row["name"]}
        found.append({**row, "condition": condition, "result": result})
    lines = blocks(terminal_table(found))["224 pixels, forward, fp32, largest batch that fits"]
    assert [cells(line)[2] for line in lines[3:]] == ["37", "12"] and "speed / baseline" not in "\n".join(lines)
    assert "| 224 | hybrid:small:bi_wkv | 37 |" in markdown(found)


def test_a_model_asked_for_that_is_the_twin_of_another_is_its_baseline():
    rows = make_rows([TWIN, SCAN], of={TWIN: ("model", [SCAN])}, sizes=(224,))
    lines = blocks(terminal_table(rows))["224 pixels, forward, fp32, batch 1"]
    assert [cells(line)[:2] for line in lines[3:]] == [[SCAN, "model"], [TWIN, "baseline"]]


def test_of_repeated_measurements_the_last_counts():
    rows = make_rows(sizes=(224,))
    again = [{**row, "result": {**row["result"], "latency_ms": around(50.0)}} for row in rows if row["kind"] == "speed"]
    assert blocks(terminal_table(rows + again))["224 pixels, forward, fp32, batch 1"][3].count("50.0 (49.0 to 51.5)") == 1
    assert "| 224 | hybrid:small:bi_wkv | 50.0 (49.0 to 51.5) |" in markdown(rows + again) and "110 (108" not in markdown(rows + again)


def test_markdown_tables(rows):
    text = markdown(rows)
    assert "| 512 | hybrid:small:bi_wkv | 573 (562 to 591) | 1.74 | 1.31 (1.28 to 1.35) | hybrid:small:attention |" in text
    assert "| 512 | hybrid:small:attention (baseline) | 752 (737 to 774) | 1.33 | 1 | itself |" in text
    assert "| 2048 | hybrid:small:attention (baseline) | out of memory | - | - | - |" in text
    assert "| 224 | hybrid:small:bi_wkv | 4.608 | 0.909 | 9.217 |" in text
    assert "| hybrid:small:bi_wkv | model | 22.05 | 22.05 | 22.05 |" in text
    assert "| linked disc | 48.91 | 47.04 |" in text, "IoU by class"
    assert "| 1024 | hybrid:small:bi_wkv | bf16 | 1 | 2.50 | 40 % | 60 % | 300 | yes |" in text
    assert "| AMD EPYC | fp32 | 8 | 2.10 (1.40 to 3.00) |" in text
    assert "linear 2.30, conv 1.15, attention 1.15" in text
    assert "versions: Python 3.11.7, linescan 0.1.0, torch 2.11.0" in text and "accuracy: commit: aaaa" in text
    assert "accuracy: versions" not in text, "what is the same is said once"
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_markdown_tables_are_rectangular(rows):
    tables = re.findall(r"(?:^\|.*\|\n)+", markdown(rows), re.M)
    assert len(tables) > 10
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_summary_sentence(rows):
    first = markdown(rows).splitlines()[0]
    assert first.startswith(
        "- hybrid:small:bi_wkv against hybrid:small:attention: 7.58 x as fast at 2048, 0.973 x as fast at 224 (no difference within the "
        "spread), the other is out of memory at 2048 (forward, fp32, batch 1)"
    )
    assert "0.241 x its peak memory at 1024" in first and "mIoU 68.6 against 67.5 per cent on test." in first


KINDS = ("model", "cost", "speed", "memory", "operators", "accuracy", "projection", "projection_error", "error")


@pytest.mark.parametrize("number", range(1, 2 ** len(KINDS), 17))
def test_every_table_copes_with_any_kinds_of_rows(number):
    kinds = [kind for bit, kind in enumerate(KINDS) if number >> bit & 1]
    some = [row for row in out_of_memory(make_rows(sizes=(224, 2048)), TWIN, 2048) if row["kind"] in kinds]
    terminal, text = terminal_table(some), markdown(some)
    assert terminal.strip()
    for kind, words in (("speed", "latency"), ("accuracy", "accuracy"), ("memory", "peak memory"), ("cost", "multiply-adds")):
        absent = [line for line in text.splitlines() if line.startswith("- Not measured in these rows")]
        assert (kind not in kinds) == any(words in line for line in absent)


@pytest.mark.parametrize("kind", KINDS)
def test_report_of_one_kind(tmp_path, kind):
    some = [row for row in out_of_memory(make_rows(sizes=(224, 512)), TWIN, 512) if row["kind"] == kind]
    plots = {
        "model": {"parameters"},
        "cost": {"macs", "activations"},
        "speed": {"latency"},
        "memory": {"memory"},
        "operators": {"operators"},
    }
    assert {path.stem for path in write_report(some, tmp_path)} == {"report"} | plots.get(kind, set())


def test_other_kinds_are_passed_over_and_named():
    old = make_row("throughput", "x", {"size": "odd"}, {})
    both = [*make_rows(sizes=(224,)), old, old]
    assert "rows of other kinds, passed over: throughput (2)" in terminal_table(both)
    assert "Rows of other kinds, passed over: throughput (2)" in markdown(both)
    assert "throughput (1)" in terminal_table([old])


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects ids, links, what would be fetched, and the text."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.fetched, self.text, self.rows = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.fetched += [attributes[key] for key in ("src", "href", "srcset", "data") if key in attributes and tag != "a"]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.rows = self.rows or data
        elif self.open[-1:] != ["style"]:
            self.text.append(data)


def test_page_is_closed_and_whole(few, written):
    html = written[1].read_text()
    page = Page(html)
    assert page.fetched and all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"url\(|@import|https?://", html)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert json.loads(page.rows) == few
    text = " ".join(page.text)
    assert "7.58 (7.43 to 7.81)" in text and "commit: cd3565d11a7f" in text


def test_page_sorts_by_what_was_measured(written):
    html = written[1].read_text()
    assert re.search(r'<td class="number" data-value="573\.44\d*">573 \(562 to 591\)</td>', html)


def test_names_are_escaped_everywhere(tmp_path):
    names = ["<b>&\"'", "a|b_$x$_\x1b[31m", "_under_", "</script><script>alert(1)</script>"]
    rows = make_rows(names, of={}, baseline=names[0], sizes=(224,))
    written = write_report(rows, tmp_path, title="<i>&")
    page = Page(written[1].read_text())
    assert json.loads(page.rows) == rows
    assert "<b>&\"'" in page.text and "<i>&" in page.text
    assert written[1].read_text().count("<script") == 2
    assert "\x1b" not in terminal_table(rows)
    text = written[0].read_text()
    assert "&lt;b&gt;&amp;" in text and "a\\|b\\_$x$\\_ \\[31m" in text and "\\_under\\_" in text and "<script" not in text


def test_pictures(written):
    names = ["latency", "memory", "accuracy_latency", "operators", "macs", "activations", "parameters"]
    assert [path.name for path in written] == ["report.md", "report.html", *(f"{name}.png" for name in names)]
    for path in written[2:]:
        picture = Image.open(path).convert("RGB")
        assert 500 < picture.width < 2400 and 250 < picture.height < 3000
        edge = [picture.getpixel((x, y)) for x in range(picture.width) for y in (0, picture.height - 1)]
        assert set(edge) == {(255, 255, 255)}, "something is cut off at the edge"
        assert f"]({path.name})" in written[0].read_text()


def test_a_plot_that_the_rows_do_not_allow_is_removed_and_no_part_is_left(tmp_path):
    rows = [row for row in make_rows(sizes=(224, 512)) if row["kind"] == "speed"]
    assert "latency.png" in [path.name for path in write_report(rows, tmp_path)]
    (tmp_path / "mine.png").touch()
    write_report(rows[:2], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html", "mine.png"}
