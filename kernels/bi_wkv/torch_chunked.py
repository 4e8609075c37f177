"""Bi-WKV in chunked PyTorch with an analytic backward: linear in T, any device, nothing saved but the inputs.

Write lam = exp(-w), p_i = exp(k_i - M), x_i = (p_i, p_i v_i). The two exclusive sums, prefix F_{t+1} = lam F_t + x_t and suffix
S_{t-1} = lam S_t + x_t, give  (den, num) = F_t + S_t + exp(u) x_t  and  y = num / den.  With r = gy / den and g = (-r y, r) the backward
needs the same two sums of g, call them P (prefix) and Q (suffix); G = P + Q + exp(u) g then gives

    gv = p G_num        gk = p (G_num v + G_den)        gu = exp(u) sum_t g . x        gw = -lam sum_t (Q . F + P . S)

with no subtraction of large sums anywhere. Two evaluations share this algebra:

- `_Chunks`, the fast one. Tokens are cut into chunks of L; each step inside a chunk is one operation on all chunks at once. Every chunk has
  one log scale M, the largest log-weight that reaches any of its tokens up to one chunk of decay; chunk states are joined in float64. Safe
  while exp(|w| L), exp(|u|) and exp(-w T) stay far inside the float32 range.
- `_tokens_*`, for every other w and u: a log scale per token, all factors <= 1, in float64. Several times slower, still linear in T.

Channels are independent, in both: a NaN in one channel stays there.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30  # log scale of an empty sum: finite, so that the difference of two of them is not NaN
SAFE_EXPONENT = 30.0  # exp(+-2 * 30) times a key's own factor stays inside float32 with 10 digits to spare
SAFE_GROWTH = 20.0  # largest -w T of the fast path: beyond it one scale per chunk cannot serve both directions
BLOCK = 1 << 21  # elements worked on at once: bounds the scratch memory to about ten times this


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(C,), (C,), (B, T, C), (B, T, C) -> y (B, T, C) in the dtype of k; float32 inside for half precision."""
    y = torch.empty_like(k, memory_format=torch.contiguous_format)
    for chunk, block, c in _blocks(w, u, k.shape):
        args = _cast(k.dtype, w[c], u[c], k[block], v[block])
        if chunk:
            _Chunks(*args, chunk).forward(y[block])
        else:
            _tokens_forward(*args, y[block])
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype."""
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    gw, gu = (torch.zeros_like(x, dtype=torch.promote_types(k.dtype, torch.float32)) for x in (w, u))
    for chunk, block, c in _blocks(w, u, k.shape):
        args = _cast(k.dtype, w[c], u[c], k[block], v[block])
        (g,) = _cast(k.dtype, gy[block])
        run = _Chunks(*args, chunk).backward if chunk else partial(_tokens_backward, *args)
        for total, part in zip((gw, gu), run(g, gk[block], gv[block]), strict=True):
            total[c] += part
    return gw.to(w.dtype), gu.to(u.dtype), gk, gv


def _cast(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The dtype of the arithmetic: float64 stays, everything else is float32."""
    return tuple(x.to(torch.promote_types(dtype, torch.float32)) for x in tensors)


def _blocks(w: Tensor, u: Tensor, shape: torch.Size) -> Iterator[tuple[int, tuple[slice, ...], slice]]:
    """Independent pieces of work of about BLOCK elements: (chunk length, index into (B, T, C), its channels)."""
    batch, length, channels = shape
    if 0 in shape:
        return
    chunk = _chunk_length(w, u, length)
    rows = max(1, BLOCK // (length * channels))
    cols = min(channels, max(16, BLOCK // length // 16 * 16))
    for c in range(0, channels, cols):
        for b in range(0, batch, rows):
            yield chunk, (slice(b, b + rows), slice(None), slice(c, c + cols)), slice(c, c + cols)


def _chunk_length(w: Tensor, u: Tensor, length: int) -> int:
    """Tokens per chunk of the fast path, 0 where only the token path is safe (NaN parameters included). Reads three numbers on the host."""
    low, high = (x.item() for x in w.aminmax())
    if not (-low * length <= SAFE_GROWTH and u.abs().max().item() <= SAFE_EXPONENT):
        return 0
    longest = SAFE_EXPONENT / max(abs(low), abs(high), 1e-9)
    if not longest >= min(8, length):
        return 0
    ideal = 64 if length > 16384 else 32 if length >= 1024 else max(1, round(math.sqrt(length)))
    top = int(min(ideal, longest))
    divisors = [d for d in range(top, (top + 1) // 2, -1) if length % d == 0]
    return divisors[0] if divisors else top


def _linear_scan(g: Tensor, x: Tensor) -> Tensor:
    """Exclusive scan along dim -2: s_0 = 0, s_{t+1} = g_t s_t + x_t; returns s_0 .. s_{n-1}. Two levels, about 5 sqrt(n) operations."""
    n = x.shape[-2]
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


def _envelope(m: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Largest log scale that reaches each row of m (..., n, C) from its left and from its right, itself included, losing `step` (C,) per
    row."""
    ramp = torch.arange(m.shape[-2], dtype=m.dtype, device=m.device)[:, None] * step
    left = (m + ramp).cummax(-2).values - ramp
    right = (m - ramp).flip(-2).cummax(-2).values.flip(-2) + ramp
    return left, right


class _Chunks:
    """One block in chunks of `length` tokens. Large scratch is (L, 2, B, n, C): step inside the chunk, (den, num), batch, chunk,
    channel."""

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, length: int):
        self.tokens, self.length = k.shape[1], length
        self.count = -(-self.tokens // length)
        self.lam, self.eu = (-w).exp(), u.exp()
        k, self.v = self._split(k, -math.inf), self._split(v, 0.0)
        scale, step = k.amax(0).double(), w.double() * length  # (B, n, C), (C,)
        left, right = _envelope(scale, step)
        torch.maximum(scale[:, 1:], left[:, :-1], out=scale[:, 1:])
        torch.maximum(scale[:, :-1], right[:, 1:], out=scale[:, :-1])
        rounded = scale.to(k.dtype)
        jump = rounded.double().diff(dim=1)  # (B, n - 1, C)
        # what a state is multiplied with when it enters the next chunk, or the previous one, whose sums have another scale
        self.rescale = torch.stack(((-jump).exp_(), jump.flip(1).exp_()))[
            :, None
        ]  # (direction, 1, B, n - 1, C); the second one runs backwards
        self.decay = (-step).exp_()
        self.x = k.new_empty(length, 2, *k.shape[1:])
        torch.sub(k, rounded, out=self.x[:, 0]).exp_()
        torch.mul(self.x[:, 0], self.v, out=self.x[:, 1])

    def _split(self, x: Tensor, fill: float) -> Tensor:
        """(B, T, C) -> (L, B, n, C), padded at the end."""
        if pad := self.count * self.length - self.tokens:
            x = F.pad(x, (0, 0, 0, pad), value=fill)
        return x.unflatten(1, (self.count, self.length)).permute(2, 0, 1, 3)

    def _fill(self, op, *args: Tensor, out: Tensor) -> None:
        """Runs op(*args) -> (L, B, n, C) into out (B, T, C), directly where no padding is in the way."""
        if self.count * self.length == self.tokens:
            op(*args, out=self._split(out, 0.0))
        else:
            out.copy_(op(*args).permute(1, 2, 0, 3).flatten(1, 2)[:, : self.tokens])

    def _sweep(self, x: Iterable[Tensor], state: Tensor) -> Iterator[Tensor]:
        """state <- lam state + x_j, in place, for each j in the order given; yields the state before each update."""
        for step in x:
            yield state
            torch.addcmul(step, state, self.lam, out=state)

    def _incoming(self, x: tuple[Tensor, ...], rescale: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix and suffix sums of x entering every chunk, each (2, B, n, C), in the scale of the chunk that they enter."""
        total = x[0].new_zeros(2, *x[0].shape)
        for _ in self._sweep(x, total[0]):
            pass
        for _ in self._sweep(x[::-1], total[1]):
            pass
        state = torch.zeros_like(total)
        if self.count > 1:
            local = torch.stack((total[0][..., :-1, :], total[1][..., 1:, :].flip(-2))).to(rescale.dtype).mul_(rescale)
            last = torch.addcmul(local, _linear_scan(rescale * self.decay, local), rescale * self.decay)
            state[0][..., 1:, :] = last[0]
            state[1][..., :-1, :] = last[1].flip(-2)
        return state[0], state[1]

    def forward(self, out: Tensor) -> None:
        """Writes y (B, T, C) into out."""
        x, sums = self.x.unbind(0), torch.empty_like(self.x)
        prefix, suffix = self._incoming(x, self.rescale)
        for step, state, total in zip(x, self._sweep(x, prefix), sums.unbind(0), strict=True):
            torch.addcmul(state, step, self.eu, out=total)
        for state, total in zip(self._sweep(x[::-1], suffix), sums.unbind(0)[::-1], strict=True):
            total.add_(state)
        self._fill(torch.div, sums[:, 1], sums[:, 0], out=out)

    def backward(self, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
        """Writes gk and gv, returns gw and gu."""
        x = self.x.unbind(0)
        prefix, suffix = self._incoming(x, self.rescale)
        before, after, grads = (torch.empty_like(self.x) for _ in range(3))
        f, s, g = before.unbind(0), after.unbind(0), grads.unbind(0)
        self._keep(x, prefix, f)
        self._keep(x[::-1], suffix, s[::-1])
        torch.addcmul(before, self.x, self.eu, out=grads).add_(after)
        den, num = grads[:, 0], grads[:, 1]
        y = num.div_(den)
        r = torch.div(self._split(gy, 0.0), den)
        torch.mul(y, r, out=den).neg_()
        num.copy_(r)
        # adjoint sums carry exp(+scale) where the sums carry exp(-scale): the factors of the two directions trade places
        prefix, suffix = self._incoming(g, self.rescale.flip(0, -2))
        gu, gw = torch.zeros_like(prefix), torch.zeros_like(prefix)
        for j, state in enumerate(self._sweep(g, prefix)):
            gw.addcmul_(state, s[j])
            gu.addcmul_(g[j], x[j])
            torch.addcmul(state, g[j], self.eu, out=s[j])
        for j, state in enumerate(self._sweep(g[::-1], suffix), start=1):
            gw.addcmul_(state, f[-j])
            s[-j].add_(state)
        total, weight = after, self.x[:, 0]
        self._fill(torch.mul, total[:, 1], weight, out=gv)
        self._fill(torch.mul, total[:, 0].addcmul_(total[:, 1], self.v), weight, out=gk)
        return -self.lam * gw.sum((0, 1, 2)), self.eu * gu.sum((0, 1, 2))

    def _keep(self, x: tuple[Tensor, ...], state: Tensor, out: tuple[Tensor, ...]) -> None:
        """The states of a sweep, all kept: out_0 = state, out_{j+1} = lam out_j + x_j."""
        out[0].copy_(state)
        for j in range(len(x) - 1):
            torch.addcmul(x[j], out[j], self.lam, out=out[j + 1])


def _effective(w: Tensor, k: Tensor) -> Tensor:
    """w, limited where a stronger decay (or growth) changes no weight in float64 and would only drown the keys: beyond the spread of a
    channel's keys."""
    spread = 2 * k.masked_fill(k == -math.inf, 0.0).abs().amax((0, 1)) + 1000
    return torch.minimum(torch.maximum(w, -spread), spread)


def _two_sided(keys: Tensor, values: Tensor, w: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Exclusive prefix and suffix sums of exp(keys) values under decay w: keys (B, T, C), values (2, B, T, C).

    Returns two pairs (log scale (B, T, C), sum (2, B, T, C)); the true sum is exp(log scale) times the second.
    """
    out = []
    for side, top in enumerate(_envelope(keys.clamp(min=LOWEST), w)):
        turn = (lambda x: x.flip(-2)) if side else (lambda x: x)
        k, x, top = turn(keys), turn(values), turn(top)
        scale = torch.cat((torch.full_like(top[:, :1], LOWEST), top[:, :-1]), 1)
        state = _linear_scan((scale - w - top).exp()[None], (k - top).exp() * x)
        out.append((turn(scale), turn(state)))
    return tuple(out)


def _tokens_sums(w: Tensor, u: Tensor, k: Tensor, v: Tensor):
    """What both directions of the token path share: w in effect, the two sums, the log scale of their total, the own weight, the total,
    y."""
    w = _effective(w, k)
    ones = torch.stack((torch.ones_like(v), v))
    (left, prefix), (right, suffix) = _two_sided(k, ones, w)
    top = torch.maximum(torch.maximum(left, right), u + k)
    own = (u + k - top).exp()
    den, num = (left - top).exp() * prefix + (right - top).exp() * suffix + own * ones
    return w, (left, prefix), (right, suffix), top, own, den, num / den


def _tokens_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Writes y (B, T, C) into out."""
    out.copy_(_tokens_sums(*(x.double() for x in (w, u, k, v)))[-1])


def _tokens_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
    """Writes gk and gv, returns gw and gu. Every sum is paired with its adjoint before it is rescaled, so that every factor stays <= 1."""
    w, u, k, v, gy = (x.double() for x in (w, u, k, v, gy))
    w, (left, prefix), (right, suffix), top, own, den, y = _tokens_sums(w, u, k, v)
    r = gy / den
    g = torch.stack((-r * y, r))
    (before, p), (after, q) = _two_sided(-top, g, w)
    total = (k + before).exp() * p + (k + after).exp() * q + own * g
    gv.copy_(total[1])
    gk.copy_(total[1] * v + total[0])
    gw = (left + after - w).exp() * (prefix * q).sum(0) + (right + before - w).exp() * (suffix * p).sum(0)
    return -gw.sum((0, 1)), (own * r * (v - y)).sum((0, 1))
