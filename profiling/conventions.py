"""What published tables of linear-time backbones count under the name of FLOPs.

All of them count multiply-adds (MACs) of convolutions, linear layers and matrix products, and call them FLOPs. They differ in what they
add. `CONVENTIONS` names the sums, `published_flops` gives them, `PAPERS` says which sum reproduces whose numbers.
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
# Family -> (convention, what else is known of its published numbers). Images of 224 x 224 pixels and a classifier of 1000 classes, unless
# it says otherwise; N tokens, C channels. `tests/test_profiling_published.py` holds the counts against the tables.
PAPERS: dict[str, tuple[str, str]] = {
    "DeiT": ("macs", "4.6 G for DeiT-S; fvcore, once it counts attention, adds the norms and says 4.608 G"),
    "RWKV-SAM": ("macs", "no classifier"),
    "Vision-RWKV": ("macs+scans", "29 N C per layer"),
    "VRWKV6": ("macs", "and 305 N C + 224 N per layer for the recurrence, which by its definition is 640 N C (`macs+scans`)"),
    "VMamba": ("macs+scans+norms", "9 B L D N + B L D for each of four directions"),
    "VSSD": ("macs+scans+norms", "less the products with the state of all heads but one, which fvcore's own handle of matmul loses"),
    "Vim": (
        "macs",
        "1.5 and 5.1 G for T and S, published by others, are not reproduced: macs are 14 and 5 % less, macs+scans 21 and 16 % more",
    ),
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
