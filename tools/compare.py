"""Train several configs, evaluate them and put them side by side: python tools/compare.py CONFIG [CONFIG ...] --out DIR [options].

Leaves in DIR: one work folder per config (checkpoints, logs, `metrics.json` with the IoU of every class), `sheet.png` (image | ground
truth | one prediction per model), `curves.png`, `table.md`, and `results.json`, the same numbers with their provenance. A config whose
`metrics.json` is there already is not trained again; `--fresh` deletes DIR first.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from linescan.engine import best_checkpoint, load_config, quiet_imports, train_and_test, write_text
from linescan.engine.cli import run_tool

with quiet_imports():
    import numpy as np
    from mmengine.config import DictAction
    from mmseg.registry import DATASETS
    from PIL import Image

    from linescan.profiling import count_macs, count_parameters, measure_throughput, measurement_row, write_rows
    from linescan.profiling.curves import plot_curves
    from linescan.profiling.tables import comparison
    from linescan.segmentation.datasets.loading import read_pixels
    from linescan.segmentation.inference import Predictor
    from linescan.segmentation.visualization import draw_sheet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, evaluate and compare several configs")
    parser.add_argument(
        "configs", nargs="+", type=Path, help="config files that share one data set; speeds are given relative to the first"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--seed", type=int, default=0, help="random seed of every training (default: 0)")
    parser.add_argument("--images", type=int, default=6, help="test images on the sheet (default: 6)")
    parser.add_argument("--fresh", action="store_true", help="delete the out folder first")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change values of every config")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def collect(args: argparse.Namespace) -> tuple[dict[str, Predictor], list[dict]]:
    """The trained models and one results row for each."""
    cfgs = {config.stem: load_config(config, cfg_options=args.cfg_options) for config in args.configs}
    predictors = {name: Predictor(cfg, best_checkpoint(args.out / name)) for name, cfg in cfgs.items()}
    size, device = tuple(cfgs[args.configs[0].stem].crop_size), predictors[args.configs[0].stem].device
    models = {name: predictor.model for name, predictor in predictors.items()}
    speeds = measure_throughput(models, size, batch=1, device=device, max_seconds=20)
    rows = []
    for (name, model), speed in zip(models.items(), speeds.values(), strict=True):
        evaluated = json.loads((args.out / name / "metrics.json").read_text())
        macs = count_macs(model, (1, 3, *size))
        result = dict(
            # JSON knows no NaN: a metric that is undefined is left out.
            **{key: value for key, value in evaluated["metrics"].items() if value == value},
            parameters=count_parameters(model).total,
            backbone_parameters=count_parameters(model.backbone).total,
            gmacs=macs.macs / 1e9,
            scan_gops=macs.scan_ops / 1e9,
            **{key: evaluated[key] for key in ("train_seconds", "train_cpu_seconds")},
            **speed.as_result(),
        )
        condition = dict(config=name, split="test", seed=args.seed, iterations=cfgs[name].train_cfg.max_iters, **speed.as_condition())
        rows.append(measurement_row("comparison", name, condition=condition, result=result, device=device))
    return predictors, rows


def draw(args: argparse.Namespace, predictors: dict[str, Predictor]) -> None:
    """`sheet.png` and `curves.png`."""
    dataset = DATASETS.build(load_config(args.configs[0], cfg_options=args.cfg_options).test_dataloader.dataset)
    rows = []
    for index in np.linspace(0, len(dataset) - 1, min(args.images, len(dataset))).astype(int):
        sample = dataset[int(index)]["data_samples"]
        image = np.ascontiguousarray(read_pixels(sample.img_path, "color", "image")[..., ::-1])
        rows.append((image, sample.gt_sem_seg.data[0].numpy(), *(predictor(image) for predictor in predictors.values())))
    first = next(iter(predictors.values()))
    sheet = draw_sheet(rows, first.classes, first.palette, titles=("image", "ground truth", *(name.split("_")[0] for name in predictors)))
    Image.fromarray(sheet).save(args.out / "sheet.png")
    scalars = {name: max((args.out / name).glob("*/vis_data/scalars.json")) for name in predictors}
    plot_curves(scalars, [("loss", "training loss"), ("mIoU", "validation mIoU, %")], args.out / "curves.png")


def main() -> None:
    args = parse_args()
    if args.fresh and args.out.exists():
        shutil.rmtree(args.out)
    for config in args.configs:
        train_and_test(config, args.out / config.stem, cfg_options=args.cfg_options, seed=args.seed)
    predictors, rows = collect(args)
    draw(args, predictors)
    write_rows(args.out / "results.json", rows)
    table = comparison(rows)
    write_text(args.out / "table.md", table)
    print(f"\n{table}\nIn {args.out}: sheet.png, curves.png, table.md, results.json, and per model checkpoints, logs and metrics.json")


if __name__ == "__main__":
    run_tool(main)
