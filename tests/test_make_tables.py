"""tools/make_tables.py on a small checkout: a page, a figure and a report that are older than their rows are found, then written anew."""

import importlib.util
import sys

import pytest

from linescan.engine.errors import LinescanError
from linescan.profiling import write_rows
from linescan.profiling.report import outdated, write_report

PAGE = """<!-- table: macs results/run/rows.json -->
<!-- end of table -->
<!-- figure: latency_by_tokens results/sweep.json results/sweep.png -->
"""
NAME = "hybrid:tiny:bi_wkv"


def row(kind, name, condition, result):
    provenance = {"device": "CPU", "device_type": "cpu", "threads": 2, "versions": {}}
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": provenance}


def profile_rows(macs):
    counts = {"macs": macs, "flops": 2 * macs, "scan_ops": 0, "macs_by_stage": {"stem": macs}, "macs_by_operator": {"conv": macs}}
    return [row("model", NAME, {}, {"parameters": 10}), row("cost", NAME, {"size": [32, 32], "batch": 1}, counts)]


@pytest.fixture
def make_tables(repo_root, tmp_path, monkeypatch):
    """A checkout with a page, the rows of a figure and a report; and the tool, which works on it."""
    spec = importlib.util.spec_from_file_location("make_tables", repo_root / "tools" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(PAGE)
    write_rows(tmp_path / "results" / "run" / "rows.json", profile_rows(macs=4_000_000_000))
    write_report(profile_rows(macs=4_000_000_000), tmp_path / "results" / "run")
    at = {"axes": "B T C", "shape": [1, 8, 4], "dtype": "float32", "mode": "fwd", "provider": "c"}
    write_rows(tmp_path / "results" / "sweep.json", [row("kernel", "scan", at, {"latency_ms": {"median": 2.0, "p20": 1.0, "p80": 3.0}})])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_tables.py", *arguments])
        module.main()

    return run


def test_what_is_older_than_its_rows_is_found_and_written_anew(make_tables, tmp_path, capsys):
    with pytest.raises(LinescanError, match=r"not what their rows say: docs/page.md, results/sweep.png; make tables"):
        make_tables("--check")
    assert not (tmp_path / "results" / "sweep.png").exists(), "a check changes nothing"
    make_tables()
    make_tables("--check")
    assert "| hybrid tiny, Bi-WKV | 0.00 | 4.00 | 0.00 |" in (tmp_path / "docs" / "page.md").read_text()
    assert capsys.readouterr().out.splitlines() == [
        "written anew: docs/page.md, results/sweep.png",
        "all tables and pictures are as their rows say",
    ]
    write_rows(tmp_path / "results" / "run" / "rows.json", profile_rows(macs=5_000_000_000))
    with pytest.raises(LinescanError, match=r"docs/page.md, results/run/report.md, results/run/macs.png; make"):
        make_tables("--check")
    make_tables()
    make_tables("--check")


def test_a_report_of_other_rows_is_outdated_file_by_file(tmp_path):
    rows = profile_rows(macs=4_000_000_000)
    names = {path.name for path in write_report(rows, tmp_path)} - {"report.html"}
    assert {"report.md", "macs.png"} <= names and outdated(rows, tmp_path) == []
    other = profile_rows(macs=4_000_000_001)
    assert {path.name for path in outdated(other, tmp_path)} >= names - {"report.md"}, "pictures are told apart by rows, not by what shows"
    (tmp_path / "macs.png").unlink()
    (tmp_path / "latency.png").write_bytes(b"of an earlier report")
    assert {path.name for path in outdated(rows, tmp_path)} == {"macs.png", "latency.png"}
