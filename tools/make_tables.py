"""Write the tables and pictures of README, docs and reports anew from results/: python tools/make_tables.py [--check]."""

import argparse
from pathlib import Path

from linescan.engine import write_text
from linescan.engine.cli import run_tool
from linescan.engine.errors import LinescanError
from linescan.profiling import read_rows, report
from linescan.profiling.figures import draw_figures, outdated_figures
from linescan.profiling.tables import refresh

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "configs", "kernels", "runs")


def make(page: Path, *, check: bool) -> list[Path]:
    """Writes the tables and draws the figures of a page; with `check` changes nothing. What is, or was, not what its rows say."""
    before = page.read_text(encoding="utf-8")
    after = refresh(before, ROOT)
    stale = [page] * (after != before) + outdated_figures(after, ROOT)
    if not check:
        if after != before:
            write_text(page, after)
        draw_figures(after, ROOT)
    return stale


def make_report(folder: Path, *, check: bool) -> list[Path]:
    """The same for the report of a profile."""
    rows = read_rows(folder / "rows.json")
    stale = report.outdated(rows, folder)
    if not check:
        report.write_report(rows, folder)
    return stale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table or picture and its rows disagree")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    pages = sorted(ROOT.glob("*.md")) + sorted(path for top in FOLDERS for path in (ROOT / top).rglob("*.md"))
    stale = [path for page in pages for path in make(page, check=args.check)]
    stale += [path for path in sorted(ROOT.glob("results/*/report.md")) for path in make_report(path.parent, check=args.check)]
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if args.check and stale:
        raise LinescanError(f"not what their rows say: {names}; make tables writes them anew")
    print(f"written anew: {names}" if stale else "all tables and pictures are as their rows say")


if __name__ == "__main__":
    run_tool(main)
