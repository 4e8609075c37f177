"""Bring ten classes of Caltech-101 into the layout that the configs read: python tools/convert_caltech.py SOURCE TARGET."""

import argparse
from pathlib import Path

from linescan.classification.caltech import convert_caltech
from linescan.engine.cli import run_tool

LISTS = Path(__file__).resolve().parents[1] / "configs" / "caltech" / "splits"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert ten classes of Caltech-101")
    parser.add_argument("source", help="the folder 101_ObjectCategories, from https://data.caltech.edu/records/mzrjq-6wc02")
    parser.add_argument("target", help="where to write, for example data/caltech10")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    counts = convert_caltech(args.source, LISTS, args.target)
    print(f"{args.target}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    run_tool(main)
