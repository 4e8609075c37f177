"""Train a model: python tools/train.py CONFIG [options]. Distributed runs: docs/distributed.md."""

import argparse
import os
import sys

if "--trust-checkpoint" not in sys.argv:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from mmengine.config import DictAction

from linescan.engine import load_config, run_train
from linescan.engine.cli import run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: the config's work_dir, else work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="CKPT",
        help="continue: without a value from the last complete checkpoint in the work folder, with one from that file",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=["auto", "fp16", "bf16"],
        help="mixed precision; without a value bf16 where the device computes in it (CPUs, recent GPUs), otherwise fp16",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help='change config values, e.g. a.b=1 c="[1,2]"'
    )
    parser.add_argument("--seed", type=int, help="random seed (default: the config's, else a random one)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="how the processes were started")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by old launchers; torchrun needs it not")
    parser.add_argument("--trust-checkpoint", action="store_true", help="load checkpoints that may run code: only files you wrote yourself")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(
        args.config,
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        launcher=args.launcher,
    )
    run_train(cfg, trust_checkpoint=args.trust_checkpoint)


if __name__ == "__main__":
    run_tool(main)
