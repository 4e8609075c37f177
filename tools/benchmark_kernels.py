"""Times an operator against its reference and against softmax attention on the same tokens, and writes the rows.

    python tools/benchmark_kernels.py                                       # Bi-WKV at the shapes of real networks
    python tools/benchmark_kernels.py --shapes 1x4096x384 --repeats 30
    python tools/benchmark_kernels.py --sweep --plot                        # time against T, with a picture

Every backend is compared with the float64 reference first; one that is wrong is not timed. Threads: OMP_NUM_THREADS or --threads. Needs
torch alone (matplotlib for --plot).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from linescan.kernels import benchmark


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="bi_wkv", help="operator: a folder of kernels/")
    parser.add_argument("--backends", nargs="+", help="backends to time (default: all but the reference)")
    parser.add_argument("--shapes", nargs="+", help="shapes such as 1x4096x384 (default: those of the operator's cases)")
    parser.add_argument("--sweep", action="store_true", help="the operator's series over T instead of its network shapes")
    parser.add_argument("--mode", nargs="+", default=list(benchmark.MODES), choices=benchmark.MODES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--attention-max-tokens", type=int, default=8192, help="longest T at which attention is timed too (default: 8192)")
    parser.add_argument("--out", type=Path, default=Path("results/kernels"), help="folder of the rows (default: results/kernels)")
    parser.add_argument("--plot", action="store_true", help="also draw time against T beside the rows")
    return parser.parse_args()


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split("x"))
    except ValueError:
        sys.exit(f"--shapes: expected sizes joined by x, such as 1x4096x384, got {text!r}")


def print_row(row: dict) -> None:
    shape = "x".join(map(str, row["shape"]))
    numbers = "  ".join(f"{row[key]:10.4g}" for key in ("median", "p20", "p80"))
    print(f"{shape:>14}  {row['mode']:6}  {row['provider']:10}  {row['metric']:14}  {numbers}", flush=True)


def draw(rows: list[dict], path: Path) -> None:
    """Median latency against T, one line per provider and one panel per mode; the band is p20 to p80."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    modes = sorted({row["mode"] for row in rows}, key=benchmark.MODES.index)
    figure, axes = plt.subplots(1, len(modes), figsize=(4.2 * len(modes), 3.6), squeeze=False, sharey=True)
    for axis, mode in zip(axes[0], modes, strict=True):
        for provider in sorted({row["provider"] for row in rows}):
            points = [r for r in rows if (r["mode"], r["provider"], r["metric"]) == (mode, provider, "latency_ms")]
            points.sort(key=lambda r: r["shape"][1])
            tokens = [r["shape"][1] for r in points]
            axis.plot(tokens, [r["median"] for r in points], marker="o", label=provider)
            axis.fill_between(tokens, [r["p20"] for r in points], [r["p80"] for r in points], alpha=0.2)
        axis.set(title=mode, xlabel="tokens T", xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("latency (ms)")
    axes[0][0].legend(loc="upper left")
    first = rows[0]
    figure.suptitle(
        f"{first['op']}, C = {first['shape'][-1]}, {first['dtype']}, {first['device']}, {first['threads']} threads", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases = benchmark.load_cases(args.op)
    dtype = getattr(torch, args.dtype)
    backends = args.backends or [b for b in cases.BACKENDS if b != "reference"]
    shapes = [parse_shape(s) for s in args.shapes] if args.shapes else (cases.SWEEP if args.sweep else cases.BENCHMARK_SHAPES)
    for backend in backends:
        benchmark.check(cases, backend, dtype, args.device)
        print(f"{args.op} [{backend}] agrees with the reference at {cases.CHECK_SHAPE}, gradients included")
    environment = benchmark.environment(args.device)
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    found = []
    for number, shape in enumerate(shapes, 1):
        print(f"shape {number} of {len(shapes)}", file=sys.stderr)
        options = dict(backends=backends, modes=args.mode, repeats=args.repeats, attention=shape[1] <= args.attention_max_tokens)
        for row in benchmark.rows(cases, args.op, shape, dtype, args.device, **options):
            print_row(row)
            found.append(row | environment)
    args.out.mkdir(parents=True, exist_ok=True)
    series = "sweep" if args.sweep else "shapes"
    device = args.device if args.device == "cuda" else f"cpu-{environment['threads']}threads"
    path = args.out / f"{args.op}_{series}_{device}_{args.dtype}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"rows: {path}")
    if args.plot:
        draw(found, path.with_suffix(".png"))
        print(f"plot: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
