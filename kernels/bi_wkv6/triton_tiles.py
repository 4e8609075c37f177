"""Tiles (tokens, channels) of the Triton kernels: loads, stores, decays and sums over sets of tokens. A tile is 16 tokens high.

A set of tokens per token is a (tokens, tokens) matrix of 0 and 1, and a sum over it a matrix product: no scan across threads, terms of one
sign only, any set at the same cost. The ones are exact in TF32, and the other factor is taken in parts that TF32 holds: two, which have 23
bits of 24, or three.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(x, t, rows, cols, stride_t, T, D, OUTSIDE: tl.constexpr = 0.0):
    """`rows` from token t on, as float32, OUTSIDE where there is no token or no channel. Only t needs 64-bit offsets."""
    inside = (rows < T - t)[:, None] & (cols < D)[None, :]
    return tl.load(x + t * stride_t + (rows[:, None] * stride_t + cols[None, :]), mask=inside, other=OUTSIDE).to(tl.float32)


@triton.jit
def store_rows(x, value, t, rows, cols, stride_t, T, D):
    inside = (rows < T - t)[:, None] & (cols < D)[None, :]
    tl.store(x + t * stride_t + (rows[:, None] * stride_t + cols[None, :]), value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def log2_decay(w, t, rows, cols, stride_t, T, D, NO_MEMORY: tl.constexpr):
    """Log2 of the decays, -exp(w) / ln 2; 0 (a decay of 1) where there is no token.

    exp(w) is 2^n 2^f with n the nearest integer to w / ln 2: exp2 of the rounded product would lose the last digits of a large -w. The
    part of ln 2 that n is multiplied with first has nine bits, so that this product is exact.
    """
    x = load_rows(w, t, rows, cols, stride_t, T, D, float("-inf"))
    x = tl.where(x > NO_MEMORY, NO_MEMORY, tl.where(x < -110.0, -110.0, x))  # keeps NaN; exp(-110) is 0 in float32
    n = tl.floor(x * LOG2E + 0.5)
    rest = (x - n * 0.693359375) + n * 2.1219444005469057e-4
    return tl.exp2(n) * (tl.exp2(rest * LOG2E) * -LOG2E)


@triton.jit
def _tf32(x):
    """x rounded to the bits that TF32 keeps."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def sum_over(tokens, x, total, PRECISION: tl.constexpr):
    """total + for each row of the mask `tokens` (tokens, tokens) the sum of the rows of x (tokens, channels) that it has."""
    which = tl.where(tokens, 1.0, 0.0)
    high = _tf32(x)
    rest = x - high
    if PRECISION == "tf32x3":  # all 24 bits
        middle = _tf32(rest)
        total = tl.dot(which, rest - middle, total, input_precision="tf32")
        rest = middle
    return tl.dot(which, high, tl.dot(which, rest, total, input_precision="tf32"), input_precision="tf32")


@triton.jit
def decay_over(tokens, decay, PRECISION: tl.constexpr):
    """The decay over the tokens that each row of the mask has."""
    return tl.exp2(sum_over(tokens, decay, tl.zeros_like(decay), PRECISION))


@triton.jit
def beyond(rows, sign):
    """Mask: whether token j (column) lies on the far side of token x (row), seen from the left (sign 1) or the right (-1)."""
    return sign * rows[None, :] > sign * rows[:, None]


@triton.jit
def ahead(rows, sign):
    """Mask: whether token j (column) lies between token x (row) and the left (sign 1) or the right edge (-1)."""
    return sign * rows[None, :] < sign * rows[:, None]


@triton.jit
def toward_middle(rows, level):
    """Mask: whether token j (column) lies strictly between token x (row) and the middle of x's block of 2^(level + 1) tokens."""
    x, j = rows[:, None], rows[None, :]
    node = x >> level
    return ((j >> level) == node) & tl.where((node & 1) == 1, j < x, j > x)


@triton.jit
def separated(rows, level):
    """Mask: pairs of tokens that a middle of this level separates."""
    return ((rows >> level)[:, None] ^ 1) == (rows >> level)[None, :]
