"""Bring Kvasir-SEG into the layout that the configs read: python tools/convert_kvasir.py Kvasir-SEG data/kvasir."""

import argparse
from pathlib import Path

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    from linescan.segmentation.datasets.kvasir import convert_kvasir

LISTS = Path(__file__).resolve().parents[1] / "configs" / "kvasir" / "splits"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert Kvasir-SEG, split by the lists in configs/kvasir/splits")
    parser.add_argument("source", help="the folder Kvasir-SEG with images/ and masks/, from https://datasets.simula.no/kvasir-seg")
    parser.add_argument("target", help="where to write, for example data/kvasir")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    counts = convert_kvasir(args.source, LISTS, args.target)
    print(f"{args.target}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    run_tool(main)
