"""Bidirectional WKV6 on a GPU: launchers of the Triton kernels.

The algebra is that of `torch_chunked`: pairs of tokens by the levels of a binary tree, every factor a decay and at most 1. Here the tree
spans a block of 16 tokens, one tile of the tensor cores. A chunk of 64 tokens is four blocks, taken pair by pair with factors to the edges
of the blocks; a matrix state per direction is stored per chunk and scanned over chunks.

The forward is three launches: states of every chunk, their scan, result. The backward does the first two for the states of (k, v) and of
(r, gradient of y); the gradient of v is the forward's last kernel with these pairs exchanged; two kernels have the other gradients.

Everything is float32 inside. Products use the tensor cores in three TF32 passes (about float32's accuracy), or one where everything that
is multiplied came as bfloat16, which has three bits less than TF32. No atomics: two runs give the same bits.
"""

import torch
import triton
from torch import Tensor

from ..triton_runtime import launch
from .reference import NO_MEMORY
from .triton_backward import FIRST_BLOCK, OWN, bi_wkv6_bwd_decay_kernel, bi_wkv6_bwd_kernel
from .triton_forward import bi_wkv6_mix_kernel, bi_wkv6_scan_kernel, bi_wkv6_state_kernel

CHUNK = 64  # most tokens per chunk
TILE = 16  # tokens per block
LEVELS = 4  # of the tree: TILE is 2^LEVELS
SCAN_BLOCK, SCAN_GROUP = 512, 8  # elements of a state per program of the scan, and chunks whose loads are in flight together
LARGEST_HEAD = 128
STATE_KEYS, STATE_VALUES = 64, 32  # key and value channels per program, or per step, of each kernel
MIX_KEYS, MIX_VALUES = 32, 64
BACKWARD_KEYS, BACKWARD_VALUES = 64, 16


def unsupported(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> str | None:
    """Why these kernels cannot take the inputs; None where they can."""
    if any(x.dtype == torch.float64 for x in (r, k, v, w, u)):
        return "the Triton kernels compute in float32, and an input is float64"
    if v.shape[3] > LARGEST_HEAD:
        return f"the Triton kernels take heads of at most {LARGEST_HEAD} channels, got {v.shape[3]}"
    return None


def forward(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """(B, T, H, D) x 4, (H, D) -> y (B, T, H, D) in the dtype of v."""
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    r, k, v, w, u = _adjacent(r, k, v, w, u)
    plan = _Plan(v, w, _precision(r, k, v))
    (sums,), _ = plan.states([(k, v)])
    plan.mix(r, k, v, u, sums, y)
    return y


def backward(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gr, gk, gv, gw, gu) for the output gradient gy (B, T, H, D), each in its input's dtype."""
    gr, gk, gv, gw = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (r, k, v, w))
    inner = gw if gw.dtype == torch.float32 else torch.empty_like(gw, dtype=torch.float32)
    r, k, v, w, u, gy = _adjacent(r, k, v, w, u, gy)
    plan = _Plan(v, w, _precision(r, k, v, gy))
    (sums, adjoint), across = plan.states([(k, v), (r, gy)])
    plan.mix(k, r, gy, u, adjoint, gv)
    flows = plan.scratch(plan.programs * plan.blocks, FIRST_BLOCK.value + plan.blocks, plan.padded)
    args = (r, k, v, w, gy, u, sums, adjoint, gr, gk, inner, flows, *plan.sizes, *_strides(r, k, v, w, gy), u.stride(0))
    keys, values = min(plan.padded, BACKWARD_KEYS), min(plan.padded, BACKWARD_VALUES)
    grid = (plan.programs * plan.blocks, plan.padded // keys)
    launch(
        bi_wkv6_bwd_kernel, grid, *args, **plan.shape, LEVELS=LEVELS, BD=keys, BV=values, PRECISION=plan.precision, num_warps=keys // TILE
    )
    args = (w, flows, across, inner, gw, *plan.sizes, *_strides(w))
    launch(bi_wkv6_bwd_decay_kernel, grid[:1], *args, **plan.shape, num_warps=plan.padded // TILE)
    gu = flows[:, OWN.value, : plan.channels].unflatten(0, (plan.batch, plan.heads, plan.count * plan.blocks)).sum((0, 2))
    return gr, gk, gv, gw, gu.to(u.dtype)


class _Plan:
    """Sizes of one call, and the launches that forward and backward share."""

    def __init__(self, v: Tensor, w: Tensor, precision: str):
        self.batch, self.tokens, self.heads, self.channels = v.shape
        self.w, self.precision = w, precision
        length = min(CHUNK, max(TILE, triton.next_power_of_2(self.tokens)))
        self.count = triton.cdiv(self.tokens, length)
        self.padded = max(16, triton.next_power_of_2(self.channels))
        self.programs = self.batch * self.heads * self.count
        self.blocks = length // TILE
        self.sizes = (self.tokens, self.channels, self.heads, self.count)
        self.shape = dict(NO_MEMORY=NO_MEMORY, TILE=TILE, COUNT=self.blocks, DP=self.padded)

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.w.device)

    def states(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The states that enter each chunk, for each pair of keys and values: (pairs, B H NC, 2, DP of keys, DP of values).

        Also log2 of the decay across each chunk, (B H NC, DP).
        """
        states = self.scratch(len(pairs), self.programs, 2, self.padded, self.padded)
        across = self.scratch(self.programs, self.padded)
        keys, values = min(self.padded, STATE_KEYS), min(self.padded, STATE_VALUES)
        for (k, v), out in zip(pairs, states, strict=True):
            args = (k, v, self.w, out, across, *self.sizes, *_strides(k, v, self.w))
            grid = (self.programs, (self.padded // keys) * (self.padded // values))
            launch(bi_wkv6_state_kernel, grid, *args, **self.shape, BD=keys, BV=values, PRECISION=self.precision, num_warps=keys // TILE)
        heads, block = self.batch * self.heads, min(SCAN_BLOCK, self.padded**2)
        grid = (len(pairs) * heads * 2 * (self.padded**2 // block) if self.count else 0,)
        launch(bi_wkv6_scan_kernel, grid, states, across, self.count, heads, DP=self.padded, BLOCK=block, GROUP=SCAN_GROUP)
        return states, across

    def mix(self, q: Tensor, k: Tensor, v: Tensor, u: Tensor, states: Tensor, out: Tensor) -> None:
        """Writes the operator on q, k, v into out (B, T, H, D)."""
        args = (q, k, v, self.w, u, states, out, *self.sizes, *_strides(q, k, v, self.w), u.stride(0))
        keys, values = min(self.padded, MIX_KEYS), min(self.padded, MIX_VALUES)
        grid = (self.programs * self.blocks, self.padded // values)
        launch(
            bi_wkv6_mix_kernel,
            grid,
            *args,
            **self.shape,
            LEVELS=LEVELS,
            BD=keys,
            BV=values,
            PRECISION=self.precision,
            num_warps=values // TILE,
        )


def _strides(*tensors: Tensor) -> list[int]:
    """Of batch, token and head."""
    return [s for x in tensors for s in x.stride()[:3]]


def _adjacent(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where the channels of a head are not adjacent."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _precision(*operands: Tensor) -> str:
    """Passes of the products: one where the operands came with 8 bits (bfloat16), three otherwise."""
    return "tf32" if all(x.dtype == torch.bfloat16 for x in operands) else "tf32x3"
