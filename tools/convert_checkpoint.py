"""Convert a published checkpoint: python tools/convert_checkpoint.py --family vrwkv IN OUT.safetensors [options].

Every key of the file is reported as mapped, resized, dropped on purpose, missing or unexpected; missing and unexpected keys are errors
unless they are allowed by name. The converted file loads with init_cfg=dict(type="Pretrained", checkpoint=OUT).
"""

import argparse
import sys

from mmengine.config import DictAction

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool
from linescan.engine.safe_load import secure_loading

with quiet_imports():
    from linescan.backbones.checkpoints import CheckpointError
    from linescan.backbones.conversion import convert_file, convertible


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a published checkpoint to a .safetensors file with linescan's names")
    parser.add_argument("source", metavar="IN", help="the published file (.pth, .safetensors)")
    parser.add_argument("target", metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--family", required=True, help=f"published code that wrote the file: {', '.join(convertible())}")
    parser.add_argument("--arch", help="architecture (default: the one that the file fits)")
    parser.add_argument("--options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="arguments of the backbone, e.g. img_size=384")
    parser.add_argument("--key", help="entry of the file with the weights, e.g. model_ema (default: state_dict or model)")
    parser.add_argument("--prefix", help="what the backbone's keys start with in the file (default: guessed)")
    parser.add_argument("--source-grid", type=int, nargs=2, metavar=("H", "W"), help="token grid of its position embedding, if not square")
    parser.add_argument("--allow-missing", nargs="+", default=(), metavar="NAME", help="our names that it may lack, or patterns (outnorm*)")
    parser.add_argument("--allow-unexpected", nargs="+", default=(), metavar="NAME", help="names in it that may be ignored, or patterns")
    parser.add_argument("--keys", action="store_true", help="list every key, not only the counts and the problems")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    secure_loading()
    options = ("family", "arch", "options", "key", "prefix", "source_grid", "allow_missing", "allow_unexpected")
    try:
        arch, report = convert_file(args.source, args.target, **{name: getattr(args, name) for name in options})
    except CheckpointError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{args.target}: arch {arch!r}, {report}")
    if args.keys:
        for kind in ("mapped", "resized"):
            print("\n".join(f"  {kind}: {theirs} -> {ours}" for theirs, ours in getattr(report, kind).items()))
        print("\n".join(f"  dropped on purpose: {key}" for key in report.dropped))


if __name__ == "__main__":
    run_tool(main)
