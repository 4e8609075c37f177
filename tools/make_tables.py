"""Write the tables and figures of README and docs anew from results/: python tools/make_tables.py [--check]."""

import argparse
from pathlib import Path

from linescan.engine import write_text
from linescan.engine.cli import run_tool
from linescan.engine.errors import LinescanError
from linescan.profiling.figures import draw_figures
from linescan.profiling.tables import refresh

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page and its rows disagree")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    changed = []
    for page in sorted(ROOT.glob("*.md")) + sorted(path for top in ("docs", "configs", "kernels") for path in (ROOT / top).rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = refresh(before, ROOT)
        if after != before:
            changed.append(str(page.relative_to(ROOT)))
            if not args.check:
                write_text(page, after)
        if not args.check:
            draw_figures(after, ROOT)
    if args.check and changed:
        raise LinescanError(f"tables that are not what their rows say: {', '.join(changed)}; make tables writes them anew")
    print(f"{'written' if changed else 'all tables are as their rows say'}{': ' * bool(changed)}{', '.join(changed)}")


if __name__ == "__main__":
    run_tool(main)
