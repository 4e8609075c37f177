"""What published tables of linear-time backbones count under the name of FLOPs.

All of them count multiply-adds (MACs) of convolutions, linear layers and matrix products, and call them FLOPs. They differ in what they
add. `CONVENTIONS` names the sums, `published_flops` gives them, `PAPERS` says who used which.
"""

import difflib

from ..kernels.costs import SCAN_CONVENTIONS
from .flops import MacCount

# Name -> what is summed.
CONVENTIONS: dict[str, str] = {
    "macs": "multiply-adds of convolutions, linear layers and matrix products, attention included",
    "macs+scans": "multiply-adds, and the element operations of scans",
    "macs+scans+norms": "multiply-adds, the element operations of scans, and as fvcore 5 per element of a layer norm, 2 of a batch norm",
}
# Family -> (convention, what else is known of its published numbers at 224 x 224). All count a classifier of 1000 classes.
PAPERS: dict[str, tuple[str, str]] = {
    "DeiT": ("macs", "4.6 G for DeiT-S; fvcore with attention counted says 4.608 G, which is macs+scans+norms"),
    "Vision-RWKV": ("macs+scans", "29 N C per layer"),
    "VMamba": ("macs+scans+norms", "9 B L D N + B L D per scan, four directions"),
    "RWKV-SAM": ("macs", "no classifier"),
}


def published_flops(count: MacCount, convention: str = "macs") -> int:
    """The sum that a convention calls FLOPs: multiply-adds, not twice that.

    Raises:
        ValueError: a convention that is not in `CONVENTIONS`; the message has the near names.
    """
    if convention not in CONVENTIONS:
        near = difflib.get_close_matches(str(convention), CONVENTIONS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"convention: unknown {convention!r}.{hint} Known: {', '.join(CONVENTIONS)}.")
    terms = convention.split("+")
    return count.macs + count.scan_ops * ("scans" in terms) + count.norm_ops * ("norms" in terms)


def scan_conventions(count: MacCount) -> list[str]:
    """A line for every scan that was counted, for the foot of a table: what its element operations are."""
    return [
        f"{name}: {ops / 1e9:.4g} G element operations, {SCAN_CONVENTIONS[name]}"
        for name, ops in count.scan_ops_by_operator.items()
        if name in SCAN_CONVENTIONS
    ]
