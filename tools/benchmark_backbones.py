"""Forward speed and peak memory of backbones side by side: python tools/benchmark_backbones.py MODEL MODEL ... [options].

A model is family:arch[:mixer], such as hybrid:small:bi_wkv or timm:deit_small_patch16_224. All models are timed in one process, one pass
each in turn; ratios are taken within a round, relative to the first model. Memory is measured in a process per model.
"""

import argparse
import time
from pathlib import Path

from mmengine.config import DictAction

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    import torch

    from linescan.backbones import BACKBONES
    from linescan.backbones.by_name import build
    from linescan.profiling import count_macs, count_parameters, measure_throughput, measurement_row, peak_memory, write_rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Forward speed and peak memory of backbones side by side")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="family:arch[:mixer]; ratios are relative to the first")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024], metavar="N", help="image heights = widths, pixels")
    parser.add_argument("--batch", type=int, default=1, help="images per pass (default: 1)")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="bf16 and fp16 under autocast (default: fp32)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cpu or cuda:0")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=9, help="timed passes per model (default: 9)")
    parser.add_argument("--max-seconds", type=float, default=300, help="per size; at least one round is timed (default: 300)")
    parser.add_argument("--options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="constructor arguments of every model")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurement (CPU only)")
    parser.add_argument("--out", type=Path, help="results file (JSON rows), rewritten after every size")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def measure(args: argparse.Namespace, size: int, configs: dict[str, dict]) -> list[dict]:
    """One row per model."""
    models = {name: build(config) for name, config in configs.items()}
    limits = dict(rounds=args.rounds, warmup=1, max_seconds=args.max_seconds)
    speeds = measure_throughput(models, size, args.batch, device=args.device, dtype=args.dtype, **limits)
    rows = []
    for name, speed in speeds.items():
        cost = count_macs(models[name], (args.batch, 3, size, size))
        counts = {"parameters": count_parameters(models[name]).total, "macs": cost.macs, "scan_ops": cost.scan_ops}
        result = {**counts, **speed.as_result()}
        if not args.no_memory and torch.device(args.device).type == "cpu":
            result |= peak_memory(build, configs[name], size, args.batch)
        condition = {**speed.as_condition(), "options": dict(args.options or {})}
        rows.append(measurement_row("backbone", name, condition=condition, result=result, device=args.device))
        memory = f"  peak +{result['peak_growth_mib']:.0f} MiB" if "peak_growth_mib" in result else ""
        print(f"{size:>5}  {name:<32} {speed.latency_ms} ms  ratio {speed.ratio}{memory}", flush=True)
    return rows


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    configs = {name: BACKBONES.named_config(name, args.options) for name in args.models}
    rows, start = [], time.perf_counter()
    for done, size in enumerate(args.sizes, start=1):
        rows += measure(args, size, configs)
        if args.out:
            write_rows(args.out, rows)
        print(f"{done} of {len(args.sizes)} sizes, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    run_tool(main)
