"""Accuracy of trained configs at several image sizes: python runs/evaluate_sizes.py WORK_DIRS OUT.json CONFIG [...] --sizes 120x160 180x240

WORK_DIRS holds one folder per config with its best_mIoU_*.pth, as tools/compare.py leaves them. What OUT.json has is not evaluated again.
"""

import argparse
from pathlib import Path

from linescan.engine import best_checkpoint
from linescan.engine.cli import run_tool
from linescan.profiling import evaluate, read_rows, write_rows

SCALE = "test_dataloader.dataset.pipeline.1.scale"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dirs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", required=True, metavar="HxW", help="to which test images are resized, pixels")
    args = parser.parse_args()
    rows = read_rows(args.out) if args.out.exists() else []
    done = {(row["name"], tuple(row["condition"]["options"][SCALE])) for row in rows}
    for config in args.configs:
        for height, width in (map(int, size.split("x")) for size in args.sizes):
            if (config.stem, (width, height)) not in done:
                folder = args.work_dirs / config.stem
                rows.append(evaluate(config, best_checkpoint(folder), cfg_options={SCALE: (width, height)}, work_dir=folder))
                write_rows(args.out, rows)
                print(f"{config.stem} at {height}x{width}: mIoU {rows[-1]['result']['mIoU']}", flush=True)


if __name__ == "__main__":
    run_tool(main)
