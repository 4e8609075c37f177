"""Train configs with several seeds: python runs/train_seeds.py WORK_DIR OUT.json CONFIG [...] --seeds 0 1 2 [--cfg-options KEY=VALUE ...].

Each run has a folder of its own, WORK_DIR/seed<N>/<name of the config>, and becomes one row of OUT.json, written after every run: all
metrics on the test split, train_seconds and train_cpu_seconds. Seeds are the outer loop, so that an interrupted call leaves whole columns.
A run that has its metrics.json is not trained again, and what OUT.json has is left as it is; either must have the settings asked for now.
"""

import argparse
import json
import math
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from mmengine.config import Config, DictAction
from mmengine.device import get_device

from linescan.engine import ConfigError, load_config, train_and_test
from linescan.engine.cli import run_tool
from linescan.profiling import measurement_row, read_rows, write_rows

# What makes two trainings of a config comparable, as far as a config tells.
SETTINGS = (
    "train_cfg",
    "param_scheduler",
    "optim_wrapper",
    "randomness",
    "train_dataloader.batch_size",
    "train_dataloader.dataset.pipeline",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("out", type=Path, help="results file; existing rows are kept")
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE", help="change values of every config"
    )
    parser.add_argument("--max-minutes", type=float, default=math.inf, metavar="M", help="start no further training after this time")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def check_same(folder: Path, config: Path, cfg: Config) -> None:
    """Raise ConfigError unless the finished run in `folder` was made with the settings of `cfg`. Paths of the data may differ."""
    dumped = folder / config.name
    if not dumped.is_file():
        raise ConfigError(f"{folder}: metrics.json, but no {config.name} that tells how it was trained; move the folder away")
    done = Config.fromfile(dumped, import_custom_modules=False)
    for name in SETTINGS:
        before, asked = plain(value_at(done, name)), plain(value_at(cfg, name))
        if before != asked:
            raise ConfigError(f"{folder}: trained with {name}={before}, asked for {asked}; choose another work_dir")


def value_at(cfg: Config, dotted: str) -> Any:
    value = cfg
    for key in dotted.split("."):
        value = value[key]
    return value


def plain(value: Any) -> Any:
    """As JSON has it: a config that was written down and read again has lists for tuples in some places."""
    return json.loads(json.dumps(value))


def accuracy_row(config: Path, folder: Path, cfg: Config, *, seed: int, options: dict[str, Any], source: str) -> dict[str, Any]:
    """Row of kind "accuracy" of a finished run. JSON knows no NaN: a metric that is undefined is left out."""
    done = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    result = {key: round(value, 4) for key, value in done["metrics"].items() if math.isfinite(value)}
    result |= {key: done[key] for key in ("train_seconds", "train_cpu_seconds")}
    condition = dict(config=config.stem, split="test", seed=seed, iterations=cfg.train_cfg.max_iters, checkpoint=done["checkpoint"])
    condition |= dict(source=source, options=plain(options))
    return measurement_row("accuracy", config.stem, condition=condition, result=result, device=get_device())


def main() -> None:
    args = parse_args()
    start, rows = time.monotonic(), read_rows(args.out) if args.out.exists() else []
    known = {(row["name"], row["condition"]["seed"]): row["condition"]["options"] for row in rows}
    for seed, config in ((seed, config) for seed in args.seeds for config in args.configs):
        if (config.stem, seed) in known:
            if known[config.stem, seed] != plain(args.cfg_options):
                raise ConfigError(f"{args.out}: {config.stem} with seed {seed} has options {known[config.stem, seed]}; choose another file")
            continue
        folder = args.work_dir / f"seed{seed}" / config.stem
        cfg, source = load_config(config, cfg_options=args.cfg_options, seed=seed), "trained here"
        if (folder / "metrics.json").exists():
            check_same(folder, config, cfg)
            date = datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime, timezone.utc)
            source = f"its metrics.json of {date:%Y-%m-%dT%H:%M:%SZ}"
        elif time.monotonic() - start > 60 * args.max_minutes:
            print(f"{config.stem}, seed {seed}: not trained, {args.max_minutes:g} minutes are over", flush=True)
            continue
        else:
            train_and_test(config, folder, cfg_options=args.cfg_options, seed=seed)
        rows.append(accuracy_row(config, folder, cfg, seed=seed, options=args.cfg_options, source=source))
        write_rows(args.out, rows)
        shown = {key: value for key, value in rows[-1]["result"].items() if key in ("mIoU", "mDice")}
        print(f"{config.stem}, seed {seed}: {', '.join(f'{key} {value}' for key, value in shown.items())}", flush=True)


if __name__ == "__main__":
    run_tool(main)
