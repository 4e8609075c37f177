"""Train several classification configs, evaluate them and put them side by side: python tools/compare_classifiers.py CONFIG ... --out DIR.

Leaves in DIR: one work folder per config (checkpoints, logs, `metrics.json`), `sheet.png` (test images with their true and predicted
classes), `curves.png`, `table.md`, and `results.json`, the same numbers with their provenance. A config whose `metrics.json` is there
already is not trained again; `--fresh` deletes DIR first.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from linescan.engine import best_checkpoint, check_weights, load_config, quiet_imports, read_checkpoint, train_and_test, write_text
from linescan.engine.cli import run_tool

with quiet_imports():
    import numpy as np
    import torch
    from mmengine.config import DictAction
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, MODELS, init_default_scope
    from PIL import Image
    from torch import nn

    from linescan.classification import draw_sheet
    from linescan.profiling import count_macs, count_parameters, measurement_row, write_rows
    from linescan.profiling.curves import plot_curves


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, evaluate and compare several classification configs")
    parser.add_argument("configs", nargs="+", type=Path, help="config files that share one data set")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--seed", type=int, default=0, help="random seed of every training (default: 0)")
    parser.add_argument("--images", type=int, default=18, help="test images on the sheet (default: 18)")
    parser.add_argument("--note", help="what a reader of the results should know, such as other jobs on the machine")
    parser.add_argument("--fresh", action="store_true", help="delete the out folder first")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change values of every config")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser.parse_args()


def load_models(args: argparse.Namespace, device: str) -> dict[str, nn.Module]:
    """The trained models, in evaluation mode."""
    models = {}
    for config in args.configs:
        cfg, checkpoint = load_config(config, cfg_options=args.cfg_options), best_checkpoint(args.out / config.stem)
        init_default_scope(cfg.default_scope)
        model, state = MODELS.build(cfg.model), read_checkpoint(checkpoint)
        check_weights(checkpoint, state, model)
        model.load_state_dict(state["state_dict"])
        models[config.stem] = model.to(device).eval()
    return models


def collect(args: argparse.Namespace, models: dict[str, nn.Module], device: str) -> list[dict]:
    """One results row for each model."""
    rows = []
    for config in args.configs:
        name, cfg, model = config.stem, load_config(config, cfg_options=args.cfg_options), models[config.stem]
        evaluated = json.loads((args.out / name / "metrics.json").read_text())
        side = next(step.input_size for step in cfg.test_dataloader.dataset.pipeline if step.type == "TimmTransform")
        macs = count_macs(model, (1, 3, side, side))
        result = dict(
            **evaluated["metrics"],
            parameters=count_parameters(model).total,
            backbone_parameters=count_parameters(model.backbone).total,
            gmacs=macs.macs / 1e9,
            scan_gops=macs.scan_ops / 1e9,
            **{key: evaluated[key] for key in ("train_seconds", "train_cpu_seconds")},
        )
        condition = dict(config=name, split="test", checkpoint=evaluated["checkpoint"], seed=args.seed, epochs=cfg.train_cfg.max_epochs)
        if args.note:
            condition["note"] = args.note
        rows.append(measurement_row("classification", name, condition=condition, result=result, device=device))
    return rows


def format_table(rows: list[dict]) -> str:
    """Markdown: one line per number."""
    results = [row["result"] for row in rows]
    metrics = [key for key in results[0] if key.startswith("accuracy/")]
    lines = [("", [row["name"] for row in rows])]
    lines += [(f"{key.removeprefix('accuracy/')}, %", [f"{r[key]:.1f}" for r in results]) for key in metrics]
    lines += [
        ("parameters, M", [f"{r['parameters'] / 1e6:.3f}" for r in results]),
        ("MACs, G", [f"{r['gmacs']:.3f}" for r in results]),
        ("training, s (processor s)", [f"{r['train_seconds']:.0f} ({r['train_cpu_seconds']:.0f})" for r in results]),
    ]
    cells = [f"| {title} | {' | '.join(values)} |" for title, values in lines]
    return "\n".join([cells[0], "|---" * (len(rows) + 1) + "|", *cells[1:]]) + "\n"


def draw(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """`sheet.png` and `curves.png`."""
    dataset = DATASETS.build(load_config(args.configs[0], cfg_options=args.cfg_options).test_dataloader.dataset)
    chosen = np.linspace(0, len(dataset) - 1, min(args.images, len(dataset))).astype(int).tolist()
    classes, batch = dataset.metainfo["classes"], pseudo_collate([dataset[i] for i in chosen])
    with torch.inference_mode():
        labels = {name.split("_")[0]: [int(sample.pred_label) for sample in model.test_step(batch)] for name, model in models.items()}
    images = [Image.open(sample.img_path) for sample in batch["data_samples"]]
    truths = [classes[int(sample.gt_label)] for sample in batch["data_samples"]]
    predictions = {name.removeprefix("hybrid-"): [classes[i] for i in found] for name, found in labels.items()}
    Image.fromarray(draw_sheet(images, truths, predictions)).save(args.out / "sheet.png")
    scalars = {name: max((args.out / name).glob("*/vis_data/scalars.json")) for name in models}
    panels = [("loss", "training loss"), ("accuracy/top1", "validation accuracy, %")]
    plot_curves(scalars, panels, args.out / "curves.png")


def main() -> None:
    args = parse_args()
    if args.fresh and args.out.exists():
        shutil.rmtree(args.out)
    for config in args.configs:
        train_and_test(config, args.out / config.stem, cfg_options=args.cfg_options, seed=args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = load_models(args, device)
    rows = collect(args, models, device)
    draw(args, models)
    write_rows(args.out / "results.json", rows)
    table = format_table(rows)
    write_text(args.out / "table.md", table)
    print(f"\n{table}\nIn {args.out}: sheet.png, curves.png, table.md, results.json, and per model checkpoints, logs and metrics.json")


if __name__ == "__main__":
    run_tool(main)
