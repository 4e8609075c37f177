"""Predict an image or a folder of images: python tools/predict.py CONFIG CKPT IMAGE_OR_FOLDER --out DIR [options].

Writes DIR/label/<name>.png (palette PNG of class indices) and DIR/overlay/<name>.png, at the size of the image. Images that cannot be
read are listed at the end and make the exit status 1; the others are done.
"""

import argparse
import os
import sys

if "--trust-checkpoint" not in sys.argv:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from mmengine.config import DictAction

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    from linescan.segmentation.inference import Predictor, predict_files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predict an image or a folder of images")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of the config's model")
    parser.add_argument("source", metavar="image_or_folder", help="an image, or a folder that is searched with its sub-folders")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, or the CPU)")
    parser.add_argument("--opacity", type=float, default=0.5, help="weight of the class colours in the overlay, 0..1 (default: 0.5)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help='change config values, e.g. a.b=1 c="[1,2]"'
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help="load checkpoints that may run code: only files you wrote yourself")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    predictor = Predictor(
        args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options, trust_checkpoint=args.trust_checkpoint
    )
    written, failures = predict_files(predictor, args.source, args.out, opacity=args.opacity)
    print(f"{written} predictions in {args.out}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
