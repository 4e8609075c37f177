"""What changed between two runs: verdicts, matching, warnings, and rows that cannot be read."""

import copy

import pytest

from linescan.profiling.report import compare_rows, comparison_markdown, comparison_table, markdown, terminal_table, write_report
from linescan.profiling.report.comparison import Change

ORIGIN = {"device": "CPU", "device_type": "cpu", "threads": 2, "driver": None, "versions": {"torch": "2.11.0"}, "commit": "a"}
SETTING = {"size": [512, 512], "batch": 1, "dtype": "fp32", "mode": "forward"}


def make_row(kind, name, condition, result):
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": ORIGIN}


def around(median, low=None, high=None):
    return {"median": median, "p20": median if low is None else low, "p80": median if high is None else high}


def speed(latency, name="a", ratio=None, **condition):
    ratio = around(1.0) if ratio is None else ratio
    result = {"latency_ms": latency, "images_per_s": around(1e3 / latency["median"]), "ratio": ratio}
    fixed = {"rounds": 9, "reference": "b", "memory_format": "contiguous", "tf32": False, "largest_batch": False}
    return make_row("speed", name, {**SETTING, **fixed, **condition}, result)


def memory(peak):
    return make_row("memory", "a", SETTING, {"peak_mib": peak, "weights_mib": 1.0, "peak_growth_mib": peak - 1})


def failed(kind, error="out of memory", **condition):
    return make_row(kind, "a", {**SETTING, **condition}, {"error": error, "message": "why"})


def verdicts(before, after):
    return {(change.kind, change.quantity): change.verdict for change in compare_rows(before, after)}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (around(100, 98, 103), around(80, 79, 82), "faster"),
        (around(80, 79, 82), around(100, 98, 103), "slower"),
        (around(100, 98, 103), around(100, 98, 103), "no change beyond noise"),
        (around(100, 90, 110), around(112, 105, 120), "no change beyond noise"),  # intervals overlap
        (around(100, 98, 103), around(104, 103, 106), "no change beyond noise"),  # they touch
        # Skewed intervals just beside each other: the change of 4 % is below sqrt(0.03^2 + 0.0385^2) = 4.9 %.
        (around(100, 96, 102), around(104, 102.5, 110.5), "no change beyond noise"),
        (around(100, 99.9, 100.1), around(101, 100.9, 101.1), "slower"),
        (around(100), around(50), "unknown: no spread"),
        (around(100, 99, 101), around(50), "unknown: no spread"),
    ],
)
def test_latency(before, after, verdict):
    found = [change for change in compare_rows([speed(before)], [speed(after)]) if change.quantity == "latency_ms"]
    assert [change.verdict for change in found] == [verdict]
    assert found[0].change == pytest.approx(after["median"] / before["median"] - 1)


def test_noise_is_the_root_of_the_sum_of_squared_half_widths():
    change = compare_rows([speed(around(100, 97, 103))], [speed(around(200, 192, 208))])[0]
    assert change.noise == pytest.approx(0.05) and change.change == pytest.approx(1.0) and change.verdict == "slower"


def test_ratio_is_compared_where_it_is_against_the_same_model():
    old, new = around(2.0, 1.98, 2.02), around(2.5, 2.48, 2.52)
    still = around(10, 9.9, 10.1)
    assert verdicts([speed(still, ratio=old)], [speed(still, ratio=new)])["speed", "ratio"] == "higher ratio"
    assert verdicts([speed(still, ratio=new)], [speed(still, ratio=old)])["speed", "ratio"] == "lower ratio"
    other = speed(still, ratio=new, reference="c")
    assert verdicts([speed(still, ratio=old)], [other]) == {("speed", "latency_ms"): "no change beyond noise"}
    own = speed(still, name="b")
    assert verdicts([own], [own]) == {("speed", "latency_ms"): "no change beyond noise"}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (100.0, 104.0, "no change beyond noise"),
        (100.0, 104.1, "more"),
        (100.0, 95.9, "less"),
        (1000.0, 1020.0, "no change beyond noise"),
        (1000.0, 1020.1, "more"),
        (0.0, 1.0, "no change beyond noise"),
    ],
)
def test_memory_within_four_mib_or_two_per_cent_is_noise(before, after, verdict):
    assert verdicts([memory(before)], [memory(after)]) == {("memory", "peak_mib"): verdict}


def test_counts_are_exact():
    def counts(parameters, macs):
        model = make_row(
            "model", "a", {"source": "a", "role": "model", "reason": str(macs)}, {"parameters": parameters, "trainable": 5, "live": None}
        )
        return [model, make_row("cost", "a", {"size": [8, 8], "batch": 1}, {"macs": macs, "scan_ops": 0})]

    found = verdicts(counts(10**10, 7), counts(10**10 + 1, 6))
    expected = {("model", "parameters"): "more", ("model", "trainable"): "same", ("cost", "macs"): "less", ("cost", "scan_ops"): "same"}
    assert found == expected


def test_accuracy_and_estimates():
    def rows(miou, latency):
        accuracy = make_row("accuracy", "a", {"split": "test"}, {"mIoU": miou})
        where = {**SETTING, "device": "T4"}
        return [accuracy, make_row("projection", "a", where, {"latency_ms": latency, "peak_mib": 1.0, "fits": True})]

    assert set(verdicts(rows(50.0, 2.0), rows(50.005, 2.0)).values()) == {"same"}
    found = verdicts(rows(50.0, 2.0), rows(50.1, 1.9))
    assert (found["accuracy", "mIoU"], found["projection", "latency_ms"], found["projection", "peak_mib"]) == ("more", "less", "same")


def test_rows_of_one_run_only():
    both, old, new = speed(around(9, 8, 10)), speed(around(9, 8, 10), batch=2), speed(around(9, 8, 10), batch=4)
    found = compare_rows([old, both], [both, new])
    assert [(change.condition["batch"], change.verdict) for change in found if change.quantity == "row"] == [
        (2, "only before"),
        (4, "only after"),
    ]


def test_measurements_of_other_settings_are_not_compared():
    found = compare_rows([speed(around(9, 8, 10))], [speed(around(9, 8, 10), memory_format="channels_last")])
    assert [change.verdict for change in found] == ["different conditions", "only before", "only after"]


def test_of_repeated_measurements_the_last_counts():
    twice = [memory(10.0), memory(50.0)]
    assert verdicts(twice, [memory(50.0)]) == {("memory", "peak_mib"): "no change beyond noise"}


def test_rounds_are_no_part_of_the_match():
    assert verdicts([speed(around(9, 8, 10))], [speed(around(9, 8, 10), rounds=3)])["speed", "latency_ms"] == "no change beyond noise"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([speed(around(9, 8, 10))], [failed("speed")], "error appeared"),
        ([failed("speed")], [speed(around(9, 8, 10))], "error vanished"),
        ([failed("speed")], [failed("speed")], "same"),
        ([failed("speed")], [failed("speed", "ValueError")], "other error"),
        ([memory(10.0)], [failed("error", "ValueError", step="memory")], "error appeared"),
        ([failed("error", "ValueError", step="memory")], [memory(10.0)], "error vanished"),
        ([memory(10.0)], [memory(10.0), failed("speed")], "error appeared"),
        ([speed(around(9, 8, 10), batch=37, largest_batch=True)], [failed("speed", largest_batch=True)], "error appeared"),
    ],
)
def test_errors(before, after, verdict):
    found = compare_rows(before, after)
    assert [change.verdict for change in found if change.quantity == "error"] == [verdict]
    assert "row" not in [change.quantity for change in found], "the measurement and its failure are one change"


def changed(row, *path, value):
    row = copy.deepcopy(row)
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("provenance", "device"), "H100", "device: before CPU; after H100"),
        (("provenance", "threads"), 1, "threads: before 2; after 1"),
        (("provenance", "versions", "torch"), "2.12.0", "torch: before 2.11.0; after 2.12.0"),
        (("provenance", "driver"), "580", "driver: before not said; after 580"),
        (("condition", "dtype"), "bf16", "dtype: before fp32; after bf16"),
        (("condition", "tf32"), True, "TF32: before False; after True"),
        (("condition", "memory_format"), "channels_last", "memory layout: before contiguous; after channels_last"),
    ],
)
def test_other_conditions_are_said_first_and_loudly(path, value, line):
    row = speed(around(9, 8, 10))
    changes = compare_rows([row], [changed(row, *path, value=value)])
    assert (changes[0].kind, changes[0].verdict) == ("provenance", "different conditions")
    table, text = comparison_table(changes), comparison_markdown(changes)
    assert table.splitlines()[1].startswith("NO COMPARISON OF CODE") and line in table
    assert text.startswith("> **NO COMPARISON OF CODE") and line in text.replace("\\_", "_")


def test_another_commit_is_what_a_comparison_is_for():
    row = speed(around(9, 8, 10))
    changes = compare_rows([row], [changed(row, "provenance", "commit", value="b")])
    assert "provenance" not in {change.kind for change in changes} and "NO COMPARISON" not in comparison_table(changes)


def test_texts():
    model = make_row("model", "a", {}, {"parameters": 22_050_664, "trainable": 5, "live": 5})
    name = "x" * 90
    changes = compare_rows([model, speed(around(100, 98, 103), name)], [model, speed(around(80, 79, 82), name)])
    table, text = comparison_table(changes), comparison_markdown(changes)
    assert max(map(len, table.splitlines())) <= 140
    assert "latency, ms | 100.0 | 80.00 | -20.0 % |" in text and "| faster |" in text and "22.05" not in text
    assert f"= {name}" in table, "a name that was cut is given in full"
    assert "3 same" in table and "1 faster" in table and "Nothing changed" not in table and "overlap" in table
    assert "Nothing changed." in comparison_table(compare_rows([model], [model]))
    assert "Nothing to compare." in comparison_table([])


def test_what_changed_stands_first():
    still = speed(around(9, 8, 10), "still")
    before = [speed(around(9, 8, 10), "gone"), still, speed(around(9, 8, 10), "lost"), speed(around(90, 89, 91), "new")]
    after = [still, {**failed("speed"), "name": "lost"}, speed(around(9, 8, 10), "new")]
    lines = comparison_table(compare_rows(before, after)).splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines[2:4]] == [("new", "faster"), ("lost", "appeared")]
    assert lines[lines.index("") - 1].startswith("gone"), "and what only one run has stands last"


def test_times_by_operator_and_other_kinds_are_passed_over():
    times = make_row("operators", "a", SETTING, {"milliseconds": {"linear": 1.0}})
    old = make_row("throughput", "a", {}, {})
    assert compare_rows([times, old], [changed(times, "result", "milliseconds", value={"linear": 2.0})]) == []


def test_a_change_is_plain_data():
    change = compare_rows([memory(10.0)], [memory(20.0)])[0]
    assert change == Change("memory", "a", SETTING, "peak_mib", 10.0, 20.0, 1.0, 0.4, "more")


ROW = speed(around(9, 8, 10))
BAD_ROWS = [
    ([], "at least one measurement"),
    ("rows.json", "list of rows"),
    ({"kind": "speed"}, "list of rows"),
    ([3], r"rows\[0\]: expected a mapping"),
    ([{"kind": "speed"}], r"rows\[0\]: lacks schema, name"),
    ([ROW, changed(ROW, "schema", value=2)], r"rows\[1\]: expected schema 1, got 2"),
    ([ROW, changed(ROW, "result", value=[1])], r"rows\[1\] \(speed of 'a'\): result must be a mapping, got list"),
    ([changed(ROW, "condition", value={})], r"rows\[0\].*condition lacks size, batch, dtype, mode, got nothing"),
    ([changed(ROW, "result", value={"ratio": 1})], r"rows\[0\].*result lacks latency_ms, images_per_s, got ratio"),
    ([changed(ROW, "condition", "size", value=224)], r"rows\[0\].*size must be \[height, width\] in pixels, got 224"),
    ([changed(ROW, "condition", "size", value="22")], r"rows\[0\].*size must be \[height, width\]"),
    ([changed(ROW, "condition", "size", value=[224, 0])], r"rows\[0\].*size must be \[height, width\]"),
    ([changed(ROW, "result", "ratio", value=3.0)], r"rows\[0\].*ratio must hold median, p20 and p80, got 3.0"),
    ([changed(ROW, "result", "latency_ms", value={"median": 3.0})], r"rows\[0\].*latency_ms must hold median, p20 and p80"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path, bad, message):
    readers = (terminal_table, markdown, lambda rows: write_report(rows, tmp_path / "out"))
    for read in readers:
        with pytest.raises(ValueError, match=message):
            read(bad)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"before: .*{message}"):
        compare_rows(bad, [ROW])
    with pytest.raises(ValueError, match=f"after: .*{message}"):
        compare_rows([ROW], bad)
