"""Tables of README and docs, written from committed rows.

A page names the table and the results files in a comment, and the table stands below it:

    <!-- table: far_context results/shapes/far_context_192x192_cpu.json -->
    | ...
    <!-- end of table -->

`refresh` writes all tables of a page anew (tools/make_tables.py); a test fails where a page and its rows disagree.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_BLOCK = re.compile(r"(?P<head><!-- table: (?P<name>\w+) (?P<files>\S+(?: \S+)*) -->\n)(?P<body>.*?)(?P<end><!-- end of table -->)", re.S)
_OPENING = "<!-- table:"
TABLES: dict[str, Callable[[Sequence[Row]], str]] = {}
# How the pages call a token mixer, an operator and a backend.
MIXERS = {
    "bi-wkv": "Bi-WKV",
    "bi_wkv": "Bi-WKV",
    "attention": "attention",
    "none": "none (control)",
    "gated-conv": "gated convolution (control)",
}
OPERATORS = {"bi_wkv": "Bi-WKV", "selective_scan": "selective scan, 16 states"}
BACKENDS = {"c": "C, built on first use", "torch": "PyTorch"}


def refresh(text: str, root: Path) -> str:
    """The text of a page with every table made from the files that its comment names.

    Args:
        text: Markdown.
        root: the folder that the file names start from.

    Raises:
        ValueError: an unknown table, or a comment without its end.
        FileNotFoundError: no such results file.
    """
    if text.count(_OPENING) != len(_BLOCK.findall(text)):
        raise ValueError(f"every '{_OPENING} NAME FILE ... -->' needs an '<!-- end of table -->' below it, and nothing else on its line")

    def written(block: re.Match) -> str:
        if block["name"] not in TABLES:
            near = difflib.get_close_matches(block["name"], TABLES, n=1)
            raise ValueError(
                f"unknown table {block['name']!r}{f', did you mean {near[0]}?' if near else ''}; there are {', '.join(TABLES)}"
            )
        rows = [row for file in block["files"].split() for row in json.loads((root / file).read_text(encoding="utf-8"))]
        return block["head"] + TABLES[block["name"]](rows) + block["end"]

    return _BLOCK.sub(written, text)


def table(render: Callable[[Sequence[Row]], str]) -> Callable[[Sequence[Row]], str]:
    """Registers a function from rows to Markdown under its name."""
    TABLES[render.__name__] = render
    return render


def lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [f"| {' | '.join(row)} |" for row in (head, *body)]
    return "\n".join([cells[0], "|---" * len(head) + "|", *cells[1:]]) + "\n"


def digits(value: float, count: int = 3) -> str:
    """At least `count` significant digits, never an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(count - 1 - magnitude, 0)}f}"


def spread(value: Mapping[str, float], form: str = ".2f") -> str:
    """Median with the 20th and 80th percentile."""
    return f"{value['median']:{form}} ({value['p20']:{form}} to {value['p80']:{form}})"


@table
def summary(rows: Sequence[Row]) -> str:
    """What tools/compare.py measured, one column per model."""
    return lines(["", *(row["name"] for row in rows)], _summary([row["result"] for row in rows]))


@table
def comparison(rows: Sequence[Row]) -> str:
    """The summary, and the IoU of every class."""
    results = [row["result"] for row in rows]
    classes = [key for key in results[0] if key.startswith("IoU.")]
    by_class = [[name, *(f"{r[name]:.1f}" if name in r else "absent" for r in results)] for name in classes]
    return lines(["", *(row["name"] for row in rows)], _summary(results) + by_class)


def _summary(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    body = [["mIoU, %", *(f"{r['mIoU']:.1f}" for r in results)]]
    if any("pair_accuracy" in r for r in results):
        body.append(
            ["linked or free disc told apart, %", *(f"{r['pair_accuracy']:.1f}" if "pair_accuracy" in r else "undefined" for r in results)]
        )
    return body + [
        ["parameters, M", *(f"{r['parameters'] / 1e6:.3f}" for r in results)],
        ["MACs, G", *(f"{r['gmacs']:.3f}" for r in results)],
        ["images/s, median (p20 to p80)", *(spread(r["images_per_s"], ".1f") for r in results)],
        ["training, s (processor s)", *(f"{r['train_seconds']:.0f} ({r['train_cpu_seconds']:.0f})" for r in results)],
    ]


@table
def far_context(rows: Sequence[Row]) -> str:
    """The shapes data: what each token mixer learned about far discs."""
    head = [
        "token mixer",
        "mIoU, %",
        "linked or free told apart, %",
        "IoU linked",
        "IoU free",
        "backbone, M",
        "GMACs",
        "training, processor min",
    ]
    body = []
    for row in rows:
        r = row["result"]
        scores = [f"{r[key]:.1f}" for key in ("mIoU", "pair_accuracy", "IoU.linked disc", "IoU.free disc")]
        cost = [f"{r['backbone_parameters'] / 1e6:.3f}", f"{r['gmacs']:.3f}", f"{r['train_cpu_seconds'] / 60:.0f}"]
        body.append([MIXERS[re.match(r"hybrid-(.+)-test", row["name"])[1]], *scores, *cost])
    return lines(head, body)


@table
def macs(rows: Sequence[Row]) -> str:
    """Multiply-adds by image size, and the operations of scans at the largest."""
    sizes = sorted({row["condition"]["input_shape"][-1] for row in rows})
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["condition"]["input_shape"][-1]] = row["result"]
    head = ["backbone (MLP ratio 2)", "parameters, M", f"GMACs {sizes[0]}", *map(str, sizes[1:]), f"scan operations at {sizes[-1]}, G"]
    body = []
    for name, found in by_name.items():
        family, arch, mixer = name.split(":")
        gmacs = [f"{found[size]['gmacs']:.{1 if found[size]['gmacs'] >= 20 and size == sizes[-1] else 2}f}" for size in sizes]
        parameters = f"{found[sizes[0]]['parameters'] / 1e6:.2f}"
        body.append([f"{family} {arch}, {MIXERS[mixer]}", parameters, *gmacs, f"{found[sizes[-1]]['scan_gops']:.2f}"])
    return lines(head, body)


@table
def operators(rows: Sequence[Row]) -> str:
    """Time of scans on 4096 tokens of width 384 relative to softmax attention, C before PyTorch."""
    ratios = {
        (row["name"], row["condition"]["provider"], row["condition"]["mode"]): row["result"]["ratio_to_sdpa"]["median"]
        for row in rows
        if "ratio_to_sdpa" in row["result"] and row["condition"]["shape"] in ([1, 4096, 384], [1, 384, 4096, 16, 1])
    }
    body = []
    for op in dict.fromkeys(op for op, _, _ in ratios):
        for number, backend in enumerate(b for b in BACKENDS if (op, b, "fwd") in ratios):
            shown = [f"{ratios[op, backend, mode]:.2g}" for mode in ("fwd", "fwdbwd")]
            body.append(["" if number else OPERATORS[op], BACKENDS[backend], *shown])
    return lines(["operator", "backend", "forward", "forward and backward"], body)


# What a profile calls a model -> what a page calls it.
MODELS = {
    "timm:deit_small": "DeiT-S",
    "timm:swin_tiny": "Swin-T",
    "timm:convnext_tiny": "ConvNeXt-T",
    "timm:mambaout_tiny": "MambaOut-T",
    "vrwkv:small": "VRWKV small",
    "vrwkv6:small": "VRWKV6 small",
    "vim:small": "Vim small",
    "vmamba:tiny": "VMamba tiny",
    "vssd:tiny": "VSSD tiny",
    "hybrid:small:bi_wkv": "hybrid small, Bi-WKV, MLP ratio 4",
    "hybrid:small:attention": "hybrid small, attention, MLP ratio 2",
    "mobilenet-v2-d16_deeplabv3plus": "DeepLabV3+ MobileNetV2",
    "r18-d16_deeplabv3plus": "DeepLabV3+ ResNet-18",
    "r50-d16_deeplabv3plus": "DeepLabV3+ ResNet-50",
    "hybrid-bi-wkv-tiny_segformer": "hybrid tiny, Bi-WKV",
    "hybrid-attention-tiny_segformer": "hybrid tiny, attention",
}


class Measured:
    """Rows of a profile at one batch, by kind, model and image size; of a measurement that was repeated the last counts."""

    def __init__(self, rows: Sequence[Row], batch: int = 1):
        self.results: dict[tuple[str, str, tuple[int, int] | None, str | None], Mapping[str, Any]] = {}
        for row in rows:
            size, mode = row["condition"].get("size"), row["condition"].get("mode")
            if mode and row["condition"]["batch"] != batch:
                continue
            if row["kind"] == "accuracy":  # Resize takes (width, height)
                size = next(scale for key, scale in row["condition"]["options"].items() if key.endswith(".scale"))[::-1]
            self.results[row["kind"], row["name"], tuple(size) if size else None, mode] = row["result"]
        self.names = list(dict.fromkeys(row["name"] for row in rows if row["kind"] == "model"))
        self.sizes = sorted({size for _, _, size, _ in self.results if size})

    def __call__(self, kind: str, name: str, size: tuple[int, int] | None = None, mode: str | None = None) -> Mapping[str, Any]:
        return self.results[kind, name, size, mode]

    def has(self, kind: str, name: str, size: tuple[int, int], mode: str | None = None) -> bool:
        return (kind, name, size, mode) in self.results


def shown(name: str) -> str:
    return MODELS[re.sub(r"_\d+xb\d+-.*", "", name)]


@table
def against_twin(rows: Sequence[Row]) -> str:
    """A model beside its attention twin by image size."""
    measured = Measured(rows)
    model, twin = measured.names
    head = ["image", "Bi-WKV, ms", "attention, ms", "attention / Bi-WKV"]
    head += ["peak memory, MiB, weights and growth: Bi-WKV", "attention", "GMACs: Bi-WKV", "attention"]
    body = []
    for size in measured.sizes:
        speeds = [measured("speed", name, size, "forward") for name in (model, twin)]
        cells = [digits(speed["latency_ms"]["median"]) for speed in speeds] + [spread(speeds[0]["ratio"])]
        cells += [f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}" for name in (model, twin)]
        cells += [digits(measured("cost", name, size)["macs"] / 1e9) for name in (model, twin)]
        body.append([str(size[0]), *cells])
    return lines(head, body)


@table
def side_by_side(rows: Sequence[Row]) -> str:
    """Models that are all held against one, which comes first."""
    measured = Measured(rows)
    reference = next(row["condition"]["reference"] for row in rows if row["kind"] == "speed")
    sides = [str(size[0]) for size in measured.sizes]
    head = ["backbone", "parameters, M"]
    for title in ("GMACs", "ms", "peak MiB", f"speed to {shown(reference)}"):
        head += [f"{title} {sides[0]}", *sides[1:]]
    body = []
    for name in sorted(measured.names, key=lambda name: name != reference):
        speeds = [measured("speed", name, size, "forward") for size in measured.sizes]
        cells = [digits(measured("cost", name, size)["macs"] / 1e9) for size in measured.sizes]
        cells += [f"{speed['latency_ms']['median']:.0f}" for speed in speeds]
        cells += [f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}" for size in measured.sizes]
        cells += [f"{speed['ratio']['median']:.2f}" for speed in speeds]
        body.append([shown(name), f"{measured('model', name)['parameters'] / 1e6:.1f}", *cells])
    return lines(head, body)


@table
def tradeoffs(rows: Sequence[Row]) -> str:
    """What each network costs, and how well it does, by image size."""
    measured = Measured(rows)
    head = ["network", "parameters, M", "image", "GMACs", "ms", "peak MiB", "mIoU, %", "pixels right, %"]
    body = []
    for name in measured.names:
        for number, size in enumerate(measured.sizes):
            speed = measured("speed", name, size, "forward")["latency_ms"]
            scores = measured("accuracy", name, size) if measured.has("accuracy", name, size) else {}
            body.append(
                [
                    *(("", "") if number else (shown(name), f"{measured('model', name)['parameters'] / 1e6:.2f}")),
                    f"{size[0]}x{size[1]}",
                    f"{measured('cost', name, size)['macs'] / 1e9:.2f}",
                    spread(speed, ".1f"),
                    f"{measured('memory', name, size, 'forward')['peak_mib']:.0f}",
                    *(f"{scores[key]:.1f}" if key in scores else "not trained" for key in ("mIoU", "aAcc")),
                ]
            )
    return lines(head, body)


@table
def training_steps(rows: Sequence[Row]) -> str:
    """Training steps of eight images, where they were measured."""
    measured = Measured(rows, batch=8)
    head = ["network", "image", "forward, ms", "training step, ms", "peak MiB: forward", "training step"]
    body = []
    for name in measured.names:
        for size in measured.sizes:
            if measured.has("speed", name, size, "training step"):
                modes = ("forward", "training step")
                times = [spread(measured("speed", name, size, mode)["latency_ms"], ".0f") for mode in modes]
                memory = [f"{measured('memory', name, size, mode)['peak_mib']:.0f}" for mode in modes]
                body.append([shown(name), f"{size[0]}x{size[1]}", *times, *memory])
    return lines(head, body)
