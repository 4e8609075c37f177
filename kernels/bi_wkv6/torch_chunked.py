"""Bidirectional WKV6 in chunked PyTorch with an analytic backward: matrix products, linear in T, any device, nothing saved but the inputs.

The weight of a pair of tokens is a sum over key channels of r k times the decays strictly between the two. Pairs are taken apart by a
binary tree over the tokens of a chunk: at the level with halves of h tokens a block of 2h has a middle, and for a pair on different sides
of it

    decay between the two = (decay from the left token to the middle) * (decay from the middle to the right token) = f_left * f_right,

so that the pairs of this level are one product (r f)(k f)^T. Each f is exp of a sum of log decays inside one half: terms of one sign,
never a difference. So no factor exceeds 1, nothing overflows, a strong decay does not drown the weak ones beside it, and one f per token
serves both directions. Every pair of a chunk belongs to exactly one level. Between chunks a matrix state per direction is carried, with
the decay from the token to the chunk's edge in the place of f.

In the gradient, the sum over the pairs that a factor f belongs to flows back to each log decay inside f; again nothing is subtracted. The
pair (k, v) and the pair (r, gradient of y) trade places between y and the gradient of v, so one function serves both.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import NO_MEMORY

CHUNK = 64  # tokens per chunk, a power of two: a state per chunk costs as much memory as D / 32 tokens
BASE = 16  # blocks of so many tokens have all their levels computed as full products and masked: smaller products do not pay
BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # elements of (T, D) worked on at once, by device type: bounds the scratch memory
LOG2E = math.log2(math.e)
Block = tuple[slice, slice, slice]  # an index into (B, T, H, D)


def _without_autocast(function: Callable) -> Callable:
    """Products of float32 stay float32 under autocast."""

    @functools.wraps(function)
    def call(*tensors: Tensor):
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*tensors)

    return call


@_without_autocast
def forward(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """(B, T, H, D) x 4, (H, D) -> y (B, T, H, D) in the dtype of v; float32 inside for half precision."""
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    dtype = _dtype(r, k, v, w, u)
    for block in _blocks(v):
        chunks = _Chunks(w[block], u[block[2]], dtype)
        queries, keys, values = (chunks.split(x[block]) for x in (r, k, v))
        chunks.join(chunks.mix(queries, keys, values, chunks.states(keys, values)), y[block])
    return y


@_without_autocast
def backward(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gr, gk, gv, gw, gu) for the output gradient gy (B, T, H, D), each in its input's dtype."""
    gr, gk, gv, gw = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (r, k, v, w))
    dtype = _dtype(r, k, v, w, u)
    gu = torch.zeros_like(u, dtype=dtype)
    for block in _blocks(v):
        chunks = _Chunks(w[block], u[block[2]], dtype)
        queries, keys, values, grads = (chunks.split(x[block]) for x in (r, k, v, gy))
        sums, adjoint = chunks.states(keys, values), chunks.states(queries, grads)
        chunks.join(chunks.mix(keys, queries, grads, adjoint), gv[block])
        *parts, part_u = chunks.gradients(queries, keys, values, grads, sums, adjoint)
        for part, out in zip(parts, (gr, gk, gw), strict=True):
            chunks.join(part, out[block])
        gu[block[2]] += part_u
    return gr, gk, gv, gw, gu.to(u.dtype)


def _dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float64 where an input has it, float32 otherwise."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _blocks(x: Tensor) -> Iterator[Block]:
    """Independent blocks that cover x (B, T, H, D): whole heads, as many as BLOCK holds."""
    if 0 in x.shape:
        return
    batch, length, heads, channels = x.shape
    room = max(1, BLOCK.get(x.device.type, BLOCK["cpu"]) // (length * channels))
    cols = min(room, heads)
    rows = max(1, room // heads)
    for b in range(0, batch, rows):
        for h in range(0, heads, cols):
            yield slice(b, b + rows), slice(None), slice(h, h + cols)


@dataclass
class _Level:
    """Pairs of tokens that the middle of a block of 2 `half` tokens separates."""

    half: int
    factor: Tensor  # (n, G, L, D) decay between each token and that middle


def _halves(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(..., L, D) -> left and right halves (blocks, half, D) of all blocks of 2 half tokens."""
    return x.reshape(-1, 2, half, x.shape[-1]).unbind(1)


def _base(x: Tensor) -> Tensor:
    """(..., L, D) -> (blocks, BASE, D)."""
    return x.reshape(-1, BASE, x.shape[-1])


def _separated(half: int, like: Tensor) -> Tensor:
    """(BASE, BASE), 1 for the pairs of the level."""
    at = torch.arange(BASE, device=like.device)
    return ((at[:, None] // half) ^ 1 == at // half).to(like.dtype)


def _between(size: int, half: int, like: Tensor) -> Tensor:
    """(size, size), 1 where token j of the row lies strictly between token x of the column and the middle of x's block of 2 half tokens."""
    at = torch.arange(size, device=like.device)
    row, col = at[:, None], at
    outside = torch.where((col // half) % 2 == 1, row < col, row > col)
    return ((row // half == col // half) & outside).to(like.dtype)


class _Chunks:
    """One block of heads. Tokens are cut into n chunks of L; tensors are (n, G, L, D), G counting batch elements and heads."""

    def __init__(self, w: Tensor, u: Tensor, dtype: torch.dtype):
        self.batch, self.tokens, self.heads, _ = w.shape
        self.dtype = dtype
        self.length = min(CHUNK, max(BASE, 1 << (self.tokens - 1).bit_length()))
        self.count = -(-self.tokens // self.length)
        self.u = u.to(dtype)[:, None].repeat(self.batch, 1, 1)  # (G, 1, D)
        rate = self._cast(w).clamp(max=NO_MEMORY).exp_().mul_(-LOG2E)  # exp2 of a rounded product would lose digits of a large -w
        self.log2_decay = self._chunked(rate)  # 0 (a decay of 1) where there is no token
        # decay between each token and the two ends of its chunk, and across the whole chunk (n, G, D, 1)
        self.levels, self.to_start, self.to_end, self.across = self._tree()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    def _chunked(self, x: Tensor) -> Tensor:
        if pad := self.count * self.length - self.tokens:
            x = F.pad(x, (0, 0, 0, 0, 0, pad))
        return x.unflatten(1, (self.count, self.length)).permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()

    def split(self, x: Tensor) -> Tensor:
        """(B, T, H, D) -> (n, G, L, D) in the dtype of the arithmetic, zero where there is no token."""
        return self._chunked(self._cast(x))

    def join(self, x: Tensor, out: Tensor) -> None:
        """Writes (n, G, L, D) into out (B, T, H, D)."""
        x = x.unflatten(1, (self.batch, self.heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
        out.copy_(x[:, : self.tokens])

    def _tree(self) -> tuple[list[_Level], Tensor, Tensor, Tensor]:
        shape = self.log2_decay.shape
        before, after, total = torch.zeros_like(self.log2_decay), torch.zeros_like(self.log2_decay), self.log2_decay
        levels, half = [], 1
        while half < self.length:
            # sums over the tokens before (after) each one in its half; `total` has one row per half
            split = (*shape[:2], shape[2] // (2 * half), 2, half, shape[3])
            left, right = after.view(split)[..., 0, :, :], before.view(split)[..., 1, :, :]
            levels.append(_Level(half, torch.stack((left, right), -3).exp2_().view(shape)))
            pairs = total.unflatten(2, (-1, 2))
            left += pairs[..., 1, None, :]
            right += pairs[..., 0, None, :]
            total, half = pairs.sum(-2), 2 * half
        return levels, before.exp2_(), after.exp2_(), total.exp2().transpose(-1, -2)

    def states(self, keys: Tensor, values: Tensor) -> Tensor:
        """Sums of key value^T over the tokens before each chunk, decayed to its start, and after it, to its end: (n, G, 2D, D)."""
        ends = torch.cat((keys * self.to_end, keys * self.to_start), -1)
        local, state = ends.mT @ values, torch.zeros(2, *values.shape[1:2], values.shape[3], values.shape[3]).to(values)
        before, after = (x.unbind(0) for x in local.chunk(2, 2))
        incoming = torch.empty_like(local)
        to_right, to_left = (x.unbind(0) for x in incoming.chunk(2, 2))
        for i in range(self.count):
            j = self.count - 1 - i
            to_right[i].copy_(state[0])
            to_left[j].copy_(state[1])
            torch.addcmul(before[i], state[0], self.across[i], out=state[0])
            torch.addcmul(after[j], state[1], self.across[j], out=state[1])
        return incoming

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, states: Tensor) -> Tensor:
        """The operator on chunks (n, G, L, D), given the states that enter them."""
        out = torch.cat((queries * self.to_start, queries * self.to_end), -1) @ states
        own = (queries * keys).mul_(self.u).sum(-1)  # (n, G, L)
        score = torch.diag_embed(own.view(-1, BASE))
        for level in self.levels:
            q, k = queries * level.factor, keys * level.factor
            if level.half < BASE:
                score.addcmul_(_base(q) @ _base(k).mT, _separated(level.half, q))
                continue
            (q0, q1), (k0, k1), (v0, v1), (y0, y1) = (_halves(x, level.half) for x in (q, k, values, out))
            y1 += (q1 @ k0.mT) @ v0
            y0 += (q0 @ k1.mT) @ v1
        _base(out).baddbmm_(score, _base(values))
        return out

    def gradients(self, queries: Tensor, keys: Tensor, values: Tensor, grads: Tensor, sums: Tensor, adjoint: Tensor):
        """(gradient of queries, of keys, of w), each (n, G, L, D), and of u (H, D). `adjoint` are the states of queries and grads."""
        gq, gk, gdecay = self._from_states(queries, keys, values, grads, sums, adjoint)
        score = _base(grads) @ _base(values).mT  # gradient of the weight of each pair
        own = score.diagonal(dim1=-2, dim2=-1).reshape(*queries.shape[:3], 1)
        gq.addcmul_(own * self.u, keys)
        gk.addcmul_(own * self.u, queries)
        gu = (own * queries * keys).sum((0, 2)).unflatten(0, (self.batch, self.heads)).sum(0)
        for level in self.levels:
            q, k = queries * level.factor, keys * level.factor
            if level.half < BASE:
                some = score * _separated(level.half, score)
                dq, dk = some @ _base(k), some.mT @ _base(q)
            else:
                dq, dk = self._across_middle(level.half, q, k, values, grads)
            dq, dk = (x.view_as(q).mul_(level.factor) for x in (dq, dk))
            gq += dq
            gk += dk
            flow, size = dq.mul_(queries).addcmul_(dk, keys), max(BASE, 2 * level.half)
            gdecay.view(-1, size, q.shape[-1]).add_(_between(size, level.half, flow) @ flow.view(-1, size, q.shape[-1]))
        return gq, gk, gdecay.mul_(self.log2_decay).div_(LOG2E), gu

    def _across_middle(self, half: int, q: Tensor, k: Tensor, values: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of q and k, both with their factor, for the pairs of one level with halves of at least BASE tokens."""
        (q0, q1), (k0, k1), (v0, v1), (g0, g1) = (_halves(x, half) for x in (q, k, values, grads))
        forwards, backwards = g1 @ v0.mT, g0 @ v1.mT
        return torch.stack((backwards @ k1, forwards @ k0), 1), torch.stack((forwards.mT @ q1, backwards.mT @ q0), 1)

    def _from_states(self, queries: Tensor, keys: Tensor, values: Tensor, grads: Tensor, sums: Tensor, adjoint: Tensor):
        """The pairs of tokens of different chunks: gradients of queries, keys and log decays."""
        dq_left, dq_right = (grads @ sums.mT).chunk(2, -1)
        dk_left, dk_right = (values @ adjoint.mT).chunk(2, -1)
        gq, gk = dq_left * self.to_start, dk_left * self.to_start
        left = (queries * gq).addcmul_(keys, gk)  # flows through the decay from the chunk's start to the token
        dq_right, dk_right = dq_right * self.to_end, dk_right * self.to_end
        right = (queries * dq_right).addcmul_(keys, dk_right)
        before = torch.ones(self.length, self.length, device=left.device, dtype=left.dtype).tril(-1)  # 1 where column < row
        (s_left, s_right), (a_left, a_right) = (x.chunk(2, 2) for x in (sums, adjoint))
        over = ((s_left * a_right).addcmul_(s_right, a_left).sum(-1, keepdim=True) * self.across).transpose(-1, -2)
        return gq.add_(dq_right), gk.add_(dk_right), before.mT @ left + before @ right + over
