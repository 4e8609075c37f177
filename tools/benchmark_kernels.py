"""Times an operator: our backends, other packages that are importable, and softmax attention on the same tokens; writes the rows.

    python tools/benchmark_kernels.py --op bi_wkv                             # at the shapes of real networks
    python tools/benchmark_kernels.py --op selective_scan --shapes 1x384x4096x16x1 --repeats 30
    python tools/benchmark_kernels.py --op bi_wkv --sweep --plot              # time against T, with a picture
    python tools/benchmark_kernels.py --op bi_wkv --device cuda --dtype bfloat16 --providers triton compile sdpa
    python tools/benchmark_kernels.py --compile-report                        # registers and spills of all Triton kernels; no GPU needed

Every provider is compared with the float64 reference first; one that is wrong is not timed. CPU threads: OMP_NUM_THREADS or --threads.
Needs torch and tqdm alone (matplotlib for --plot).
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from linescan.kernels import benchmark
from linescan.profiling import measurement_row, write_rows
from linescan.profiling.figures import picture, tokens

NUMBERS = ("median", "p20", "p80")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", help=f"operator: one of {', '.join(benchmark.operators())} (default: bi_wkv; of a compile report, all)")
    parser.add_argument("--mode", nargs="+", default=list(benchmark.MODES), help="fwd, bwd, fwdbwd (default: all)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--shapes", nargs="+", help="shapes such as 1x4096x384 (default: those of the operator's cases)")
    parser.add_argument("--sweep", action="store_true", help="the operator's series over T instead of its network shapes")
    parser.add_argument(
        "--providers", nargs="+", help="backends, compile, sdpa or module:function (default: all that can run; compile on a GPU only)"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--attention-max-tokens", type=int, default=8192, help="longest T at which attention is timed too (default: 8192)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/kernels"), help="folder of the rows (default: work_dirs/kernels)")
    parser.add_argument("--plot", action="store_true", help="also draw time against T beside the rows")
    parser.add_argument("--compile-report", action="store_true", help="compile every Triton kernel for five GPU generations instead")
    args = parser.parse_args()
    args.mode = [mode for text in args.mode for mode in text.split(",")]
    if unknown := set(args.mode) - set(benchmark.MODES):
        parser.error(f"--mode: expected {', '.join(benchmark.MODES)}, got {', '.join(sorted(unknown))}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    return args


def parse_shape(text: str, axes: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != len(axes.split()):
        sys.exit(f"--shapes: expected sizes of {axes} joined by x, such as {'x'.join('8' for _ in axes.split())}, got {text!r}")
    return shape


def row_text(row: dict) -> str:
    shape = "x".join(map(str, row["shape"]))
    numbers = "  ".join(f"{row[key]:10.4g}" for key in NUMBERS)
    return f"{shape:>18}  {row['mode']:14}  {row['provider']:10}  {row['metric']:14}  {numbers}"


def as_result(row: dict, device: str) -> dict:
    """A row in the schema of all results of the project, the numbers of the metric under its name."""
    condition = {key: value for key, value in row.items() if key not in ("op", "metric", *NUMBERS)}
    condition["copy_gb_per_s"] = benchmark.copy_gb_per_s(device)
    result = {row["metric"]: {key: row[key] for key in NUMBERS}}
    return measurement_row("kernel", row["op"], condition=condition, result=result, device=device)


def measure(args: argparse.Namespace, path: Path) -> list[dict]:
    """All rows as results, written after every shape and mode so that an interrupted run keeps what it has."""
    cases = benchmark.load_cases(args.op)
    dtype = getattr(torch, args.dtype)
    providers = args.providers or benchmark.default_providers(args.op, args.device)
    default = cases.SWEEP if args.sweep else cases.BENCHMARK_SHAPES
    shapes = [parse_shape(s, cases.SHAPE_NAMES) for s in args.shapes] if args.shapes else default
    for name in (p for p in providers if p != benchmark.ATTENTION):
        benchmark.check(args.op, name, dtype, args.device)
        print(f"{args.op} [{name}] agrees with the reference at {cases.CHECK_SHAPE}, gradients included")
    found = list(benchmark.overhead_rows(args.op, args.device))
    results = [as_result(row, args.device) for row in found]
    print(*map(row_text, found), sep="\n")
    work = [(shape, mode) for shape in shapes for mode in args.mode]
    for shape, mode in (bar := tqdm(work, desc=args.op, unit="case", disable=None)):  # a log file gets the rows alone
        bar.set_postfix_str(f"{'x'.join(map(str, shape))} {mode}")
        short = tokens({"shape": shape, "axes": cases.SHAPE_NAMES}) <= args.attention_max_tokens
        names = [p for p in providers if p != benchmark.ATTENTION or short]
        for row in benchmark.rows(args.op, shape, dtype, args.device, names, mode, args.repeats):
            bar.write(row_text(row))
            found.append(row)
            results.append(as_result(row, args.device))
        write_rows(path, results)
    if args.sweep:
        slopes = list(benchmark.slope_rows(found, tokens))
        results += [as_result(row, args.device) for row in slopes]
        write_rows(path, results)
        print(*map(row_text, slopes), sep="\n")
    return results


def main() -> None:
    args = parse_args()
    if args.compile_report:
        from linescan.kernels import compile_report

        sys.exit(1 if compile_report.run([args.op] if args.op else benchmark.operators("triton")) else 0)
    args.op = args.op or "bi_wkv"
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = args.device if args.device == "cuda" else f"cpu-{torch.get_num_threads()}threads"
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.op}_{'sweep' if args.sweep else 'shapes'}_{device}_{args.dtype}.json"
    rows = measure(args, path)
    print(f"rows: {path}")
    if args.plot:
        path.with_suffix(".png").write_bytes(picture("latency_by_tokens", rows))
        print(f"plot: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
