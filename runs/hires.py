"""What large images cost: the small hybrid with Bi-WKV, its attention twin and Swin-T in turn in one process, at 4:3 sizes up to 2048x1536.

    python runs/hires.py OUT [--device cuda --dtype bf16] [--rounds 5] [--threads 2]

OUT gets rows.json, written anew with every row, and the report. Both hybrids have MLP ratio 2, so that only the mixer differs. Attention
is torch.nn.functional.scaled_dot_product_attention: flash kernels on a GPU in bf16. Weights are random; cost does not depend on them.
"""

import argparse
from pathlib import Path

import torch

from linescan.engine.cli import run_tool
from linescan.engine.errors import ConfigError
from linescan.profiling import profile, progress_bar, report, write_rows
from linescan.profiling.subjects import resolve

SIZES = ((384, 512), (768, 1024), (1152, 1536), (1536, 2048))  # height, width, pixels
TWIN, OTHERS = "hybrid:small:attention", ("hybrid:small:bi_wkv", "timm:swin_tiny")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16 (default: fp32)")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes per model and size (default: 5)")
    parser.add_argument("--max-seconds", type=float, default=240.0, help="per size; no further round starts then (default: 240)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    path = args.out / "rows.json"
    if path.exists():
        raise ConfigError(f"out: {path} is there already; choose another folder")
    if args.threads:
        torch.set_num_threads(args.threads)
    hybrid = dict(mlp_ratio=2)
    models = [resolve(name, options=hybrid if name.startswith("hybrid") else None) for name in OTHERS]
    rows = []

    def keep(row: dict) -> None:
        rows.append(row)
        write_rows(path, rows)

    settings = dict(device=args.device, dtypes=(args.dtype,), rounds=args.rounds, max_seconds=args.max_seconds)
    with progress_bar() as show:
        profile(models, baseline=resolve(TWIN, options=hybrid), sizes=SIZES, **settings, on_row=keep, progress=show)
    print(report.terminal_table(rows), *report.write_report(rows, args.out), sep="\n")


if __name__ == "__main__":
    run_tool(main)
