"""Tables of the backbones' parameters: rows of runs/parameters.sh."""

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Row, lines, table

ADAPTER = "adapter"
# Family as rows name it -> what README says of it: class, token mixer.
FAMILIES = {
    "hybrid": ("`HybridBackbone`", "any of eight, exchangeable (here Bi-WKV, MLP ratio 2)"),
    "vrwkv": ("`VRWKV` (Vision-RWKV)", "Bi-WKV"),
    "vrwkv6": ("`VRWKV6`", "bidirectional WKV6"),
    "vim": ("`Vim`", "bidirectional Mamba"),
    "vmamba": ("`VMamba`", "cross-scan Mamba; variants: `v0`, the first form, and `m0`, Mamba-2"),
    "vssd": ("`VSSD`", "non-causal SSD, attention in stage 4"),
    ADAPTER: ("`ViTAdapter`", "a pyramid beside the tokens of any plain backbone (here VRWKV)"),
}
BASELINES = (
    "`TimmBackbone`",
    "DeiT, DeiT-III, Swin, ConvNeXt, ViTamin, MambaOut, ResNet, and any other timm network of these kinds",
    "",
    "the baselines",
)


@table
def backbones(rows: Sequence[Row]) -> str:
    """One line per family, millions of parameters without classifier; of the variants of an architecture (tiny_v0) none."""
    body = []
    for family, found in _by_family(rows).items():
        name, mixer = FAMILIES[family]
        sizes = {arch: f"{result['parameters'] / 1e6:.1f}" for arch, result in found.items() if "_" not in arch}
        body.append([name, ", ".join(sizes), ", ".join(sizes.values()), mixer])
    return lines(["family", "architectures", "parameters, M", "token mixer"], [*body, BASELINES])


@table
def parameters(rows: Sequence[Row]) -> str:
    """One line per architecture, with and without a classifier."""
    body = []
    for family, found in _by_family(rows).items():
        for number, (arch, result) in enumerate(found.items()):
            total = result["parameters"] + result["classifier_parameters"]
            name = "" if number else FAMILIES[family][0]
            body.append([name, arch, f"{result['parameters'] / 1e6:.2f}", f"{total / 1e6:.2f}"])
    return lines(["backbone", "arch", "backbone alone, M", "with a linear classifier of 1000 classes, M"], body)


def _by_family(rows: Sequence[Row]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Family -> architecture -> result, in the order of the rows."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        family, arch, *inner = row["name"].split(":")
        found.setdefault(family, {})[inner[0] if family == ADAPTER else arch] = row["result"]
    return found
