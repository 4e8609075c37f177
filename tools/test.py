"""Evaluate a checkpoint: python tools/test.py CONFIG CKPT [options]. Distributed runs: docs/distributed.md."""

import argparse
import os
import sys

if "--trust-checkpoint" not in sys.argv:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # before torch is imported: no checkpoint may run code

from mmengine.config import Config, ConfigDict, DictAction

from linescan.engine import ConfigError, load_config, metrics_of, run_test, use_tta
from linescan.engine.cli import run_tool

IOU_METRICS = ("IoUMetric", "PerClassIoUMetric")
CLASS_METRICS = ("TopKAccuracy",)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on the test split of its config")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint of the config's model")
    parser.add_argument("--work-dir", help="folder for the log (default: the config's work_dir, else work_dirs/<config name>)")
    parser.add_argument(
        "--out",
        help="folder for metrics.json and the predictions: of label maps <image name>.png with class indices and the IoU per class, "
        "of classes predictions.json",
    )
    parser.add_argument("--show-dir", help="folder for pictures, image | ground truth | prediction; they lie in it directly")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: the config's tta_pipeline and tta_model")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help='change config values, e.g. a.b=1 c="[1,2]"'
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="how the processes were started")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by old launchers; torchrun needs it not")
    parser.add_argument("--trust-checkpoint", action="store_true", help="load checkpoints that may run code: only files you wrote yourself")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def write_predictions(cfg: Config, out: str) -> None:
    """Let the metric of the config write its predictions to `out`; the IoU metric also reports every class."""
    label_maps, classes = metrics_of(cfg, IOU_METRICS), metrics_of(cfg, CLASS_METRICS)
    if not label_maps and not classes:
        raise ConfigError(f"--out: test_evaluator has none of {', '.join(IOU_METRICS + CLASS_METRICS)}, which write the predictions")
    for metric in label_maps:
        metric.update(type="PerClassIoUMetric", output_dir=out)
    for metric in classes:
        metric.output_dir = out


def draw_pictures(cfg: Config, folder: str) -> None:
    """Switch the picture hook on, for all test images, and let the visualizer's image files lie in `folder`."""
    if metrics_of(cfg, CLASS_METRICS):
        raise ConfigError("--show-dir draws label maps, and the config classifies whole images; --out writes its predictions")
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    hooks.setdefault("visualization", ConfigDict(type="PredictionPicturesHook"))
    hooks.visualization.update(draw=True, interval=1)
    visualizer = cfg.setdefault("visualizer", ConfigDict(type="SegLocalVisualizer", name="visualizer"))
    # An absolute image folder takes precedence over the backend's own folder, where scalars and the config stay.
    visualizer.vis_backends = [dict(type="LocalVisBackend", img_save_dir=os.path.abspath(folder))]


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher)
    if args.tta:
        use_tta(cfg)
    if args.out:
        write_predictions(cfg, args.out)
    if args.show_dir:
        draw_pictures(cfg, args.show_dir)
    metrics_file = os.path.join(args.out, "metrics.json") if args.out else None
    run_test(cfg, args.checkpoint, metrics_file=metrics_file, trust_checkpoint=args.trust_checkpoint)


if __name__ == "__main__":
    run_tool(main)
