"""Cost and accuracy of models, held against a transformer of their scale: python tools/profile_model.py MODEL [MODEL ...] [options].

A MODEL is family:arch[:mixer] or a config file. Leaves in --out: rows.json, report.html, report.md, PNG plots; see docs/profiler.md.

    python tools/profile_model.py hybrid:small:bi_wkv vmamba:tiny --sizes 224,512,1024 --train
    python tools/profile_model.py CONFIG --eval CHECKPOINT
    python tools/profile_model.py --compare before/rows.json after/rows.json
"""

import argparse
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from mmengine.config import DictAction

from linescan.engine import ConfigError, quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    import torch

    from linescan.profiling import evaluate, line_up, profile, progress_bar, read_accuracy, read_rows, report, write_rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(interrupted=False)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="family:arch[:mixer] or config file")
    add("--baseline", default="auto", metavar="NAME", help="auto (default): attention twin or nearest transformer; none; or a MODEL")
    add("--controls", action="store_true", help="add the hybrids' twins without long-range mixing (gated_conv, none)")
    add("--sizes", nargs="+", default=["224,512,1024"], metavar="N", help="image sides N or HxW in pixels (default: 224,512,1024)")
    add("--batch", nargs="+", metavar="N", help="images per pass; max: the largest that fits (default: 1; on a GPU 1,8,max)")
    add("--dtype", nargs="+", default=["fp32"], metavar="T", help="fp32; bf16, fp16 under autocast (default: fp32)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cpu or cuda:0")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--train", action="store_true", help="also the training step: forward, backward and optimizer")
    add("--rounds", type=int, default=9, help="timed passes per model (default: 9)")
    add("--max-seconds", type=float, default=120, help="no further round after this time, per condition (default: 120)")
    add("--channels-last", action="store_true", help="memory layout of images and weights")
    add("--tf32", action="store_true", help="allow TF32 matrix products on a GPU")
    add("--no-memory", action="store_true", help="skip the memory measurement")
    add("--no-operators", action="store_true", help="skip the time by operator")
    add("--trace", action="store_true", help="write Chrome traces to OUT/trace")
    add("--options", nargs="+", action=DictAction, metavar="K=V", help="arguments of every backbone, cfg_options of every config")
    add("--eval", nargs="+", default=[], metavar="CKPT", help="evaluate these checkpoints, one for each config among the models")
    add("--accuracy", nargs="+", default=[], type=Path, metavar="FILE", help="take accuracies from results files")
    add("--project", nargs="+", default=[], metavar="GPU", help="estimate latency and memory on these devices (data sheets)")
    add("--out", type=Path, help="folder for everything that is written (default: work_dirs/profile/<date and time>)")
    add("--append", action="store_true", help="add to the rows that lie in OUT already")
    add("--report", nargs="+", type=Path, metavar="FILE", help="write a report of these results files, and measure nothing")
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="show what changed between two results files, and measure nothing")
    add("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def words(values: list[str]) -> list[str]:
    """224,512 and 224 512 alike."""
    return [word for value in values for word in value.split(",") if word]


def number(text: str, argument: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--{argument}: expected a positive integer, got {text!r}")
    return int(text)


def size(text: str) -> int | tuple[int, ...]:
    sides = tuple(number(side, "sizes") for side in text.split("x"))
    return sides[0] if len(sides) == 1 else sides


def accuracy_rows(args: argparse.Namespace, subjects: list) -> list[dict]:
    """Accuracies from results files, then from evaluations."""
    configs = [model for model in args.models if Path(model).is_file() or "::" in model]
    if args.eval and len(args.eval) != len(configs):
        raise ConfigError(f"--eval: expected a checkpoint for each of the {len(configs)} configs among the models, got {len(args.eval)}")
    rows = [row for path in args.accuracy for row in read_accuracy(path, subjects)]
    for config, checkpoint in zip(configs, args.eval, strict=False):
        rows.append(evaluate(Path(config), Path(checkpoint), cfg_options=args.options, work_dir=args.out / Path(config).stem))
    return rows


def measure(args: argparse.Namespace) -> list[dict]:
    """All rows; the file is rewritten with each of them."""
    path = args.out / "rows.json"
    if path.exists() and not args.append:
        raise ConfigError(f"--out: {path} is there already; choose another folder, or --append to it")
    rows = read_rows(path) if path.exists() else []
    chosen = dict(baseline=None if args.baseline == "none" else args.baseline, with_controls=args.controls, options=args.options)
    batches = words(args.batch or (["1,8,max"] if args.device.startswith("cuda") else ["1"]))
    settings = dict(
        sizes=[size(text) for text in words(args.sizes)],
        batches=[text if text == "max" else number(text, "batch") for text in batches],
        dtypes=words(args.dtype),
        memory=not args.no_memory,
        operators=not args.no_operators,
        trace=args.out / "trace" if args.trace else None,
        memory_format="channels_last" if args.channels_last else "contiguous",
        projections=args.project,
        **{key: getattr(args, key) for key in ("device", "train", "rounds", "max_seconds", "tf32")},
    )

    def keep(row: dict) -> None:
        rows.append(row)
        write_rows(path, rows)

    with progress_bar() as show:
        try:
            for row in accuracy_rows(args, line_up(args.models, **chosen)):
                keep(row)
            profile(args.models, **chosen, **settings, on_row=keep, progress=show)
        except KeyboardInterrupt:
            args.interrupted = True
    return rows


def main() -> None:
    args = parse_args()
    if args.compare:
        print(report.comparison_table(report.compare_rows(*map(read_rows, args.compare))))
        return
    if not args.models and not args.report:
        raise ConfigError("name at least one MODEL, such as hybrid:small:bi_wkv or a config file; --help shows the options")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out = args.out or Path("work_dirs/profile") / datetime.now(timezone.utc).strftime("%Y%m%d_%H%M%S")
    rows = [row for path in args.report for row in read_rows(path)] if args.report else measure(args)
    if rows:
        print(report.terminal_table(rows), *report.write_report(rows, args.out), sep="\n")
    if args.interrupted:
        print("interrupted: the report holds what was measured until then", file=sys.stderr)
        sys.exit(130)
    if failed := [row for row in rows if row["kind"] == "error"]:
        texts = {f"{row['name']}, {row['condition']['step']}: {row['result']['message']}" for row in failed}
        raise ConfigError("not everything could be measured: " + "; ".join(sorted(texts)))


if __name__ == "__main__":
    run_tool(main)
