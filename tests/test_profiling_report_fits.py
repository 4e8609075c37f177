"""Slopes of power laws, Pareto fronts, and how numbers and names are written."""

import math
import subprocess
import sys

import pytest

from linescan.profiling.report import loglog_slope, pareto_front
from linescan.profiling.report.text import breakdown, listed, one_line, short_names, shortened, significant, size_text, spread


@pytest.mark.parametrize("exponent", [-1.5, 0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_law_is_its_exponent(exponent):
    x = [224**2, 512**2, 1024**2, 2048**2]
    assert loglog_slope(x, [3e-4 * value**exponent for value in x]) == pytest.approx(exponent, abs=1e-12)


def test_slope_is_the_least_squares_one():
    # log2: x 0, 1, 2 and y 0, 3, 3: covariance 3, variance 2.
    assert loglog_slope([1, 2, 4], [1, 8, 8]) == pytest.approx(1.5)
    assert loglog_slope([2, 2, 4, 4], [1, 4, 8, 2]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1], [1], "x must hold at least two different values"),
        ([], [], "x must hold at least two different values"),
        ([2, 2], [1, 3], "x must hold at least two different values"),
        ([1, 2], [1], "equally long, got 2 and 1"),
        ([0, 2], [1, 1], "x must hold positive finite numbers, got 0"),
        ([1, 2], [1, -1], "y must hold positive finite numbers, got -1"),
        ([1, 2], [1, math.nan], "y must hold positive finite numbers, got nan"),
        ([1, math.inf], [1, 2], "x must hold positive finite numbers, got inf"),
    ],
)
def test_slope_of_bad_points(x, y, message):
    with pytest.raises(ValueError, match=message):
        loglog_slope(x, y)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(3, 3)], [0]),
        ([(1, 1), (2, 2), (3, 3)], [0, 1, 2]),
        ([(3, 3), (2, 2), (1, 1)], [2, 1, 0]),
        ([(1, 3), (2, 2), (3, 1)], [0]),
        ([(1, 1), (2, 5), (3, 4), (4, 6)], [0, 1, 3]),
        ([(1, 1), (1, 2)], [1]),
        ([(2, 2), (1, 2)], [1]),
        ([(1, 1), (1, 1), (2, 1)], [0, 1]),
        ([(-1, -5), (0, -4.5)], [0, 1]),
    ],
)
def test_pareto_front(points, front):
    assert pareto_front(points) == front


@pytest.mark.parametrize("point", [(1, math.nan), (math.inf, 1), (1, 2, 3)])
def test_pareto_front_of_bad_points(point):
    with pytest.raises(ValueError, match="pairs \\(cost, value\\) of finite numbers"):
        pareto_front([(1, 1), point])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (97.333, 3, "97.3"),
        (9.996, 3, "10.0"),
        (0.9996, 3, "1.00"),
        (0.01234, 3, "0.0123"),
        (12345.6, 3, "12346"),
        (4.608, 4, "4.608"),
        (-0.5, 2, "-0.50"),
        (999.96, 4, "1000"),
        (0, 3, "0"),
        (None, 3, "-"),
        (37, 1, "37"),
    ],
)
def test_significant_digits(value, digits, text):
    assert significant(value, digits) == text


def test_spread_of_one_round_is_its_value():
    assert spread({"median": 97.33, "p20": 95.9, "p80": 98.549}) == "97.3 (95.9 to 98.5)"
    assert spread({"median": 2.0, "p20": 2.0, "p80": 2.0}) == "2.00"


def test_sizes_and_lists():
    assert [size_text(size) for size in ((512, 512), [512, 1024])] == ["512", "512x1024"]
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert one_line(" a\n\x1b[31mb\t c\u202e") == "a [31mb c"


def test_breakdown_keeps_the_largest_in_their_order():
    parts = {"stem": 1e6, "": 2e6, **{f"s{i}": (i + 3) * 1e6 for i in range(4)}}
    assert breakdown(parts, 1e6, most=6).startswith("stem 1.00, (the model itself) 2.00, s0 3.00")
    assert breakdown(parts, 1e6, most=2) == "s2 5.00, s3 6.00, 4 more 10.0"
    assert breakdown({}, 1e6) == "" and breakdown({"a": 0, "b": 1e6}, 1e6) == "b 1.00"


def test_short_names_are_different_and_short():
    assert short_names(["hybrid:small:bi_wkv", "hybrid:tiny:bi_wkv"]) == {n: n for n in ("hybrid:small:bi_wkv", "hybrid:tiny:bi_wkv")}
    names = [f"hybrid-{mixer}-small_upernet_4xb4-160k_ade20k-512x512" for mixer in ("attention", "bi-wkv")]
    assert list(short_names(names).values()) == ["hybrid-attention-small", "hybrid-bi-wkv-small"]
    alike = ["a" * 40 + "x" + "b" * 40, "a" * 40 + "y" + "b" * 40, "c"]
    shorts = short_names(alike, width=20)
    assert len(set(shorts.values())) == 3 and max(map(len, shorts.values())) <= 20
    assert short_names(["a" * 50]) == {"a" * 50: shortened("a" * 50, 32)}
    assert len(shortened("abcdefgh", 5)) == 5 and shortened("abcdefgh", 5) == "ab…gh" and shortened("abc", 5) == "abc"


def test_importing_the_report_loads_no_matplotlib():
    code = "import sys, linescan.profiling.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
