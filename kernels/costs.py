"""Arithmetic of the operators, one formula per operator, registered for torch.utils.flop_counter and handed to fvcore as a plain table.

Convention: elementary operations on one element, each counted once (add, multiply, divide, exp, max), as Vision-RWKV counts its operator:
29 B T C for one forward Bi-WKV. They are neither MACs nor 2 x MACs, so do not halve them when a FLOP count of matmuls is turned into MACs;
add them as they are. A formula takes the shapes of the operator's tensor arguments, in order, and returns that number.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

Shapes = Sequence[Sequence[int]]


def bi_wkv(shapes: Shapes) -> int:
    """Shapes of w, u, k, v -> 29 B T C (Vision-RWKV's published count of one forward pass)."""
    return 29 * prod(shapes[2])


def bi_wkv_backward(shapes: Shapes) -> int:
    """Shapes of w, u, k, v, gy -> 58 B T C: twice the forward, the usual ratio, since nobody has published a count of the backward."""
    return 58 * prod(shapes[2])


def selective_scan(shapes: Shapes) -> int:
    """Shapes of u, delta, A, B, C, D?, z? -> 9 B D L N, and B D L each for skip connection and gate (state-spaces/mamba #110)."""
    (batch, channels, length), (_, states) = shapes[0], shapes[2]
    extras = sum(s is not None for s in shapes[5:7])
    return batch * channels * length * (9 * states + extras)


def selective_scan_backward(shapes: Shapes) -> int:
    """Shapes of u, delta, A, B, C, D?, z?, ... -> twice the forward, the usual ratio; nobody has published a count of the backward."""
    return 2 * selective_scan(shapes)


def cross_selective_scan(shapes: Shapes) -> int:
    """Shapes of u (B, D, H, W), delta, A, B, C, D? -> a selective scan of L = H W steps in each of four directions: 36 B D L N, and 4 B D L
    for the skip connection. The sum of the directions counts as zero, like that of a cross merge."""
    return 4 * prod(shapes[0]) * (9 * shapes[2][1] + (shapes[5] is not None))


def cross_selective_scan_backward(shapes: Shapes) -> int:
    """Shapes of u, delta, A, B, C, D?, ... -> twice the forward, the usual ratio; nobody has published a count of the backward."""
    return 2 * cross_selective_scan(shapes)


def ssd(shapes: Shapes) -> int:
    """Shapes of x, dt, A, B, C, D?, z? -> 5 B T H P N for the states by the definition (decay, outer product, their sum, product
    with C, its sum), B T H P for dt x, and 2 B T H P each for skip connection and gate. A chunked form does more, in matrix products."""
    tokens, states = prod(shapes[0]), shapes[3][3]
    extras = sum(s is not None for s in shapes[5:7])
    return tokens * (5 * states + 1 + 2 * extras)


def ssd_backward(shapes: Shapes) -> int:
    """Shapes of x, dt, A, B, C, D?, z?, ... -> twice the forward, the usual ratio; nobody has published a count of the backward."""
    return 2 * ssd(shapes)


def bi_wkv6(shapes: Shapes) -> int:
    """Shapes of r, k, v, w, u -> 10 B T H D^2, the recurrence as it is defined: k v^T (1), decay and sum of two states (4), the sum of
    the three matrices with u (3), and its product with r (2)."""
    return 10 * prod(shapes[0]) * shapes[0][3]


def bi_wkv6_backward(shapes: Shapes) -> int:
    """Shapes of r, k, v, w, u, gy -> twice the forward, the usual ratio; nobody has published a count of the backward."""
    return 2 * bi_wkv6(shapes)


def rearrangement(shapes: Shapes) -> int:
    """Zero, for operators that move elements, and for additions and interpolations that networks count nowhere else: element-wise
    operations outside a scan are no part of the published counts."""
    return 0


FORMULAS: dict[str, Callable[[Shapes], int]] = {
    "linescan::bi_wkv": bi_wkv,
    "linescan::bi_wkv_backward": bi_wkv_backward,
    "linescan::bi_wkv6": bi_wkv6,
    "linescan::bi_wkv6_backward": bi_wkv6_backward,
    "linescan::selective_scan": selective_scan,
    "linescan::selective_scan_backward": selective_scan_backward,
    "linescan::cross_selective_scan": cross_selective_scan,
    "linescan::cross_selective_scan_backward": cross_selective_scan_backward,
    "linescan::ssd": ssd,
    "linescan::ssd_backward": ssd_backward,
    "linescan::cross_scan": rearrangement,
    "linescan::cross_scan_backward": rearrangement,
    "linescan::cross_merge": rearrangement,
    "linescan::cross_merge_backward": rearrangement,
    "linescan::q_shift": rearrangement,
    "linescan::q_shift_backward": rearrangement,
    "linescan::q_shift_mix": rearrangement,
    "linescan::q_shift_mix_backward": rearrangement,
}


# What a reader of a count is told about the scans in it. Operators that only move elements count as zero.
SCAN_CONVENTIONS: dict[str, str] = {
    "linescan::bi_wkv": "29 B T C (Vision-RWKV)",
    "linescan::bi_wkv6": "10 B T H D^2, the recurrence as it is defined",
    "linescan::selective_scan": "9 B L D N + B L D for the skip connection, + B L D for a gate (Mamba)",
    "linescan::cross_selective_scan": "9 B L D N + B L D for the skip connection (Mamba), in each of 4 directions",
    "linescan::ssd": "5 B T H P N + B T H P, + 2 B T H P each for skip connection and gate, the recurrence as it is defined",
}


def register(name: str, packet: torch._ops.OpOverloadPacket) -> None:
    """Makes torch.utils.flop_counter count operator `name` (a key of FORMULAS)."""
    formula = FORMULAS[name]

    def count(*shapes, out_shape=None, **kwargs) -> int:
        return formula(shapes)

    register_flop_formula(packet)(count)
