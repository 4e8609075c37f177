"""Bi-WKV in PyTorch for any w and u: a log scale of its own for every token, so that all factors are <= 1, in float64. Several times slower
than the chunks of `torch_chunked.py`, whose algebra and scan over chunks it shares; still linear in T."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30  # log scale of an empty sum: finite, so that the difference of two of them is not NaN


def linear_scan(g: Tensor, x: Tensor) -> Tensor:
    """Exclusive scan along dim -2: s_0 = 0, s_{t+1} = g_t s_t + x_t; returns s_0 .. s_{n-1}. Above 128 rows in two levels of sqrt(n)."""
    n = x.shape[-2]
    if n <= 128:
        state = torch.zeros_like(x)
        rows = state.unbind(-2)
        for decay, row, before, after in zip(g.unbind(-2), x.unbind(-2), rows, rows[1:], strict=False):
            torch.addcmul(row, decay, before, out=after)
        return state
    inner = max(1, math.isqrt(n))
    outer = -(-n // inner)
    if pad := outer * inner - n:
        g, x = F.pad(g, (0, 0, 0, pad)), F.pad(x, (0, 0, 0, pad))
    g, x = (z.unflatten(-2, (outer, inner)).unbind(-2) for z in (g, x))
    state, decay = x[0].new_zeros(*x[0].shape[:-1], inner, x[0].shape[-1]), torch.ones_like(g[0])
    states, decays = state.unbind(-2), [decay]
    for j in range(inner - 1):
        torch.addcmul(x[j], g[j], states[j], out=states[j + 1])
        decays.append(g[j] * decays[j])
    end, span = torch.addcmul(x[-1], g[-1], states[-1]), g[-1] * decays[-1]
    for i in range(1, outer):
        end[..., i, :].addcmul_(span[..., i, :], end[..., i - 1, :])
    for j in range(inner):
        states[j][..., 1:, :].addcmul_(decays[j][..., 1:, :], end[..., :-1, :])
    return state.flatten(-3, -2)[..., :n, :]


def envelope(m: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Largest log scale that reaches each row of m (..., n, C) from left and right, itself included; `step` (C,) is lost per row."""
    ramp = torch.arange(m.shape[-2], dtype=m.dtype, device=m.device)[:, None] * step
    left = (m + ramp).cummax(-2).values - ramp
    right = (m - ramp).flip(-2).cummax(-2).values.flip(-2) + ramp
    return left, right


def _effective(w: Tensor, k: Tensor) -> Tensor:
    """w (C,), limited to the spread of a channel's keys: more decay or growth changes no weight, but drowns the keys in rounding."""
    spread = 2 * k.masked_fill(k == -math.inf, 0.0).abs().amax((0, 1)) + 1000
    return torch.minimum(torch.maximum(w, -spread), spread)


def _two_sided(keys: Tensor, values: Tensor, w: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Exclusive prefix and suffix sums of exp(keys) values under decay w: keys (B, T, C), values (2, B, T, C).

    Returns two pairs (log scale (B, T, C), sum (2, B, T, C)); the true sum is exp(log scale) times the second.
    """
    out = []
    for side, top in enumerate(envelope(keys.clamp(min=LOWEST), w)):
        turn = (lambda x: x.flip(-2)) if side else (lambda x: x)
        k, x, top = turn(keys), turn(values), turn(top)
        scale = torch.cat((torch.full_like(top[:, :1], LOWEST), top[:, :-1]), 1)
        state = linear_scan((scale - w - top).exp()[None], (k - top).exp() * x)
        out.append((turn(scale), turn(state)))
    return tuple(out)


def _sums(w: Tensor, u: Tensor, k: Tensor, v: Tensor):
    """What both directions of the token path share: w in effect, the two sums, log scale of the total, own weight, denominator, y."""
    w = _effective(w, k)
    ones = torch.stack((torch.ones_like(v), v))
    (left, prefix), (right, suffix) = _two_sided(k, ones, w)
    top = torch.maximum(torch.maximum(left, right), u + k)
    own = (u + k - top).exp()
    den, num = (left - top).exp() * prefix + (right - top).exp() * suffix + own * ones
    return w, (left, prefix), (right, suffix), top, own, den, num / den


def tokens_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Writes y (B, T, C) into out."""
    out.copy_(_sums(*(x.double() for x in (w, u, k, v)))[-1])


def tokens_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
    """Writes gk and gv, returns gw and gu. Every sum is paired with its adjoint before it is rescaled, so that every factor stays <= 1."""
    w, u, k, v, gy = (x.double() for x in (w, u, k, v, gy))
    w, (left, prefix), (right, suffix), top, own, den, y = _sums(w, u, k, v)
    r = gy / den
    g = torch.stack((-r * y, r))
    (before, p), (after, q) = _two_sided(-top, g, w)
    total = (k + before).exp() * p + (k + after).exp() * q + own * g
    gv.copy_(total[1])
    gk.copy_(total[1] * v + total[0])
    gw = (left + after - w).exp() * (prefix * q).sum(0) + (right + before - w).exp() * (suffix * p).sum(0)
    return -gw.sum((0, 1)), (own * r * (v - y)).sum((0, 1))
