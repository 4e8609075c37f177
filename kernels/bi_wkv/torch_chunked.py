"""Bi-WKV in chunked PyTorch with an analytic backward: linear in T, any device, nothing saved but the inputs.

Write lam = exp(-w), p_i = exp(k_i - M), x_i = (p_i, p_i v_i). The two exclusive sums, prefix F_{t+1} = lam F_t + x_t and suffix
S_{t-1} = lam S_t + x_t, give  (den, num) = F_t + S_t + exp(u) x_t  and  y = num / den.  With r = gy / den and g = (-r y, r) the backward needs
the same two sums of g, call them P (prefix) and Q (suffix); G = P + Q + exp(u) g then gives

    gv = p G_num        gk = p (G_num v + G_den)        gu = exp(u) sum_t g . x        gw = -lam sum_t (Q . F + P . S)

with no subtraction of large sums anywhere. Two evaluations share this algebra:

`_Chunks`  the fast one. Tokens are cut into chunks of L; each step of a chunk is one operation on all chunks at once. Every chunk has one log scale M (the
           largest log-weight that any token has in this chunk, up to one chunk of decay), and chunk states are joined in float64.
           Safe while exp(|w| L), exp(|u|) and exp(-w T) stay far inside the float32 range.
`_tokens`  for every other w and u: log scales per token, all factors <= 1, in float64. Several times slower, still linear in T.

Channels are independent, in both: a NaN in one channel stays there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30  # log scale of a chunk without any weight (all keys -inf); finite, so that differences of scales are never NaN
SAFE_EXPONENT = 30.0  # exp(+-2 * 30) times a key's own factor stays inside float32 with 10 digits to spare
SAFE_GROWTH = 20.0  # largest -w T of the fast path: beyond it one scale per chunk cannot serve both directions
BLOCK = 1 << 21  # elements worked on at once: bounds the scratch memory to about ten times this


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(C,), (C,), (B, T, C), (B, T, C) -> y (B, T, C) in the dtype of k; float32 inside for half precision."""
    y = torch.empty_like(k, memory_format=torch.contiguous_format)
    dtype = torch.promote_types(k.dtype, torch.float32)
    chunk = _chunk_length(w, u, k.shape[1])
    for b, c in _blocks(k.shape):
        args = w[c].to(dtype), u[c].to(dtype), k[b, :, c].to(dtype), v[b, :, c].to(dtype)
        _Chunks(*args, chunk).forward(y[b, :, c]) if chunk else y[b, :, c].copy_(_tokens_forward(*args))
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    gw, gu = (torch.zeros_like(x, dtype=dtype) for x in (w, u))
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    chunk = _chunk_length(w, u, k.shape[1])
    for b, c in _blocks(k.shape):
        args = w[c].to(dtype), u[c].to(dtype), k[b, :, c].to(dtype), v[b, :, c].to(dtype)
        g = gy[b, :, c].to(dtype)
        parts = (
            _Chunks(*args, chunk).backward(g, gk[b, :, c], gv[b, :, c]) if chunk else _tokens_backward(*args, g, gk[b, :, c], gv[b, :, c])
        )
        gw[c] += parts[0]
        gu[c] += parts[1]
    return gw.to(w.dtype), gu.to(u.dtype), gk, gv


def _blocks(shape: torch.Size):
    """Slices (batch, channels) whose work is independent, none much larger than BLOCK elements."""
    batch, length, channels = shape
    rows = max(1, BLOCK // max(1, length * channels))
    cols = channels if length * channels <= BLOCK else max(16, BLOCK // length // 16 * 16)
    for b in range(0, batch, rows):
        for c in range(0, channels, cols):
            yield slice(b, b + rows), slice(c, c + cols)


def _chunk_length(w: Tensor, u: Tensor, length: int) -> int:
    """Tokens per chunk of the fast path, 0 where only the token path is safe (NaN parameters included). Reads three numbers on the host."""
    if length == 0 or w.numel() == 0:
        return 1
    low, high = (x.item() for x in w.aminmax())
    if not (-low * length <= SAFE_GROWTH and u.abs().max().item() <= SAFE_EXPONENT):
        return 0
    longest = SAFE_EXPONENT / max(abs(low), abs(high), 1e-9)
    if not longest >= min(8, length):
        return 0
    ideal = 16 if length <= 16384 else 64
    if length < 256:
        ideal = max(1, round(math.sqrt(length)))
    top = int(min(ideal, longest))
    divisors = [d for d in range(top, (top + 1) // 2, -1) if length % d == 0]
    return divisors[0] if divisors else top


def _linear_scan(g: Tensor, x: Tensor) -> Tensor:
    """Exclusive scan along dim 0: s_0 = 0, s_{t+1} = g_t s_t + x_t; returns s_0 .. s_{n-1}. Two levels, about 5 sqrt(n) operations."""
    n = x.shape[0]
    inner = max(1, math.isqrt(n))
    outer = -(-n // inner)
    if pad := outer * inner - n:
        g, x = (F.pad(z, (0, 0) * (z.dim() - 1) + (0, pad)) for z in (g, x))
    g, x = g.unflatten(0, (outer, inner)), x.unflatten(0, (outer, inner))
    state, decay = torch.zeros_like(x), torch.ones_like(g)
    for j in range(1, inner):
        torch.addcmul(x[:, j - 1], g[:, j - 1], state[:, j - 1], out=state[:, j])
        torch.mul(g[:, j - 1], decay[:, j - 1], out=decay[:, j])
    ends = torch.addcmul(x[:, -1], g[:, -1], state[:, -1])
    decays = g[:, -1] * decay[:, -1]
    for i in range(1, outer):
        state[i].addcmul_(decay[i], ends[i - 1])
        ends[i].addcmul_(decays[i], ends[i - 1])
    return state.flatten(0, 1)[:n]


def _envelope(m: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Largest decayed log scale from the left and from the right, own entry included: max_{i <= j} (m_i - (j - i) step) along dim 0, and mirrored."""
    ramp = torch.arange(m.shape[0], dtype=m.dtype, device=m.device).view(-1, *[1] * (m.dim() - 1)) * step
    left = (m + ramp).cummax(0).values - ramp
    right = (m - ramp).flip(0).cummax(0).values.flip(0) + ramp
    return left, right


class _Chunks:
    """One block in chunks of `length` tokens. Scratch is (L, 2, B, n, C): step inside the chunk, (den, num), batch, chunk, channel."""

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, length: int):
        self.tokens, self.length = k.shape[1], length
        self.count = -(-self.tokens // length)
        self.lam, self.eu = (-w).exp(), u.exp()
        k, self.v = self._split(k, -math.inf), self._split(v, 0.0)
        m = k.amax(0).clamp_(min=LOWEST).transpose(0, 1).double()  # (n, B, C)
        step = w.double() * length
        left, right = _envelope(m, step)
        scale = m.clone()
        scale[1:] = torch.maximum(m[1:], left[:-1])
        scale[:-1] = torch.maximum(scale[:-1], right[1:])
        jump = scale.diff(dim=0)  # (n - 1, B, C)
        self.up, self.down, self.decay = (-jump).exp_()[:, None], jump.exp()[:, None], (-step).exp()
        self.x = k.new_empty(length, 2, *k.shape[1:])
        torch.sub(k, scale.transpose(0, 1).to(k.dtype), out=self.x[:, 0])
        self.x[:, 0].exp_()
        torch.mul(self.x[:, 0], self.v, out=self.x[:, 1])

    def _split(self, x: Tensor, fill: float) -> Tensor:
        """(B, T, C) -> (L, B, n, C), padded at the end."""
        if pad := self.count * self.length - self.tokens:
            x = F.pad(x, (0, 0, 0, pad), value=fill)
        return x.unflatten(1, (self.count, self.length)).permute(2, 0, 1, 3)

    def _merge(self, y: Tensor, out: Tensor) -> Tensor:
        """(L, B, n, C) -> out (B, T, C)."""
        return out.copy_(y.permute(1, 2, 0, 3).flatten(1, 2)[:, : self.tokens])

    def _sweep(self, x: tuple[Tensor, ...], state: Tensor):
        """state <- lam state + x_j for each j in the order given, yielding it before each update."""
        for step in x:
            yield state
            torch.addcmul(step, state, self.lam, out=state)

    def _incoming(self, x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix and suffix state entering every chunk, (2, B, n, C) each, in the chunk's own scale. `up` and `down` rescale to the next and the previous chunk."""
        steps = x.unbind(0)
        totals = x.new_zeros(2, *x.shape[1:])
        for total, order in zip(totals, (steps, steps[::-1]), strict=True):
            for _ in self._sweep(order, total):
                pass
        totals = totals.permute(3, 0, 1, 2, 4).double()  # (n, direction, 2, B, C)
        factor = torch.stack((up, down.flip(0)), 1)  # (n - 1, direction, 1, B, C)
        local = torch.stack((totals[:-1, 0], totals[1:, 1].flip(0)), 1) * factor
        states = torch.zeros_like(totals)
        if self.count > 1:
            scanned = _linear_scan(F.pad(factor * self.decay, (0, 0) * 4 + (0, 1)), F.pad(local, (0, 0) * 4 + (0, 1)))
            states[:, 0], states[:, 1] = scanned[:, 0], scanned[:, 1].flip(0)
        prefix, suffix = states.permute(1, 2, 3, 0, 4).to(x.dtype)
        return prefix.contiguous(), suffix.contiguous()

    def forward(self, out: Tensor) -> None:
        prefix, suffix = self._incoming(self.x, self.up, self.down)
        x = self.x.unbind(0)
        total = torch.empty_like(self.x)
        sums = total.unbind(0)
        for j, state in enumerate(self._sweep(x, prefix)):
            torch.addcmul(state, x[j], self.eu, out=sums[j])
        for j, state in enumerate(self._sweep(x[::-1], suffix)):
            sums[-1 - j].add_(state)
        self._merge(torch.div(total[:, 1], total[:, 0], out=total[:, 1]), out)

    def backward(self, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
        """Writes gk and gv, returns gw and gu."""
        prefix, suffix = self._incoming(self.x, self.up, self.down)
        steps = self.x.unbind(0)
        f, s, g = (torch.empty_like(self.x) for _ in range(3))
        for kept, state in zip(f.unbind(0), self._sweep(steps, prefix), strict=True):
            kept.copy_(state)
        for kept, state in zip(s.unbind(0)[::-1], self._sweep(steps[::-1], suffix), strict=True):
            kept.copy_(state)
        torch.addcmul(f, self.x, self.eu, out=g).add_(s)
        y = g[:, 1].div_(g[:, 0])
        r = self._split(gy, 0.0) / g[:, 0]
        torch.mul(r, y, out=g[:, 0]).neg_()
        g[:, 1] = r
        gu = (g * self.x).sum((0, 1, 2, 3))
        prefix, suffix = self._incoming(g, self.down, self.up)  # adjoints carry exp(+scale), so the factors trade places
        gw = torch.zeros_like(prefix)
        total = torch.empty_like(g)
        for j, state in enumerate(self._sweep(g.unbind(0), prefix)):
            gw.addcmul_(state, s[j])
            torch.addcmul(state, g[j], self.eu, out=total[j])
        for j, state in enumerate(self._sweep(g.unbind(0)[::-1], suffix)):
            gw.addcmul_(state, f[-1 - j])
            total[-1 - j].add_(state)
        total.mul_(self.x[:, :1])
        self._merge(total[:, 1], gv)
        self._merge(torch.addcmul(total[:, 0], total[:, 1], self.v), gk)
        return -self.lam * gw.sum((0, 1, 2)), self.eu * gu


def _exp(x: Tensor) -> Tensor:
    """exp of what is <= 0 but for rounding: where two log scales of an empty sum are compared the difference means nothing, and must not overflow."""
    return x.clamp_(max=0.0).exp_()


def _two_sided(keys: Tensor, values: Tensor, w: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Exclusive prefix and suffix sums of exp(keys) values under decay w, tokens first: keys (T, B, C), values (2, T, B, C).

    Returns two pairs (log scale (T, B, C), sum (2, T, B, C)); the true sum is exp(log scale) times the second.
    """
    out = []
    for side, envelope in enumerate(_envelope(keys.clamp(min=LOWEST), w)):
        k, x, top = (keys, values, envelope) if side == 0 else (keys.flip(0), values.flip(1), envelope.flip(0))
        scale = torch.cat((torch.full_like(top[:1], LOWEST), top[:-1]))
        g = _exp(scale - w - top)
        state = _linear_scan(g[:, None], (_exp(k - top) * x).transpose(0, 1)).transpose(0, 1)
        out.append((scale, state) if side == 0 else (scale.flip(0), state.flip(1)))
    return tuple(out)


def _tokens_sums(w: Tensor, u: Tensor, k: Tensor, v: Tensor):
    """Shared by both directions of the token path; everything in float64 and tokens first."""
    w, u, k, v = w.double(), u.double(), k.double().transpose(0, 1), v.double().transpose(0, 1)
    (left, prefix), (right, suffix) = _two_sided(k, torch.stack((torch.ones_like(v), v)), w)
    top = torch.maximum(torch.maximum(left, right), (u + k).clamp(min=LOWEST))
    own = _exp(u + k - top)
    den, num = _exp(left - top) * prefix + _exp(right - top) * suffix + own * torch.stack((torch.ones_like(v), v))
    return w, k, v, (left, prefix), (right, suffix), top, own, den, num / den


def _tokens_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _tokens_sums(w, u, k, v)[-1].transpose(0, 1)


def _tokens_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
    """Writes gk and gv, returns gw and gu. Each product pairs a sum with its adjoint before it is rescaled, so every factor stays <= 1."""
    w, k, v, (left, prefix), (right, suffix), top, own, den, y = _tokens_sums(w, u, k, v)
    r = gy.double().transpose(0, 1) / den
    g = torch.stack((-r * y, r))
    (before, p), (after, q) = _two_sided(-top, g, w)
    total = _exp(k + before) * p + _exp(k + after) * q + own * g
    gv.copy_(total[1].transpose(0, 1))
    gk.copy_((total[1] * v + total[0]).transpose(0, 1))
    gw = -(_exp(left + after - w) * (prefix * q).sum(0) + _exp(right + before - w) * (suffix * p).sum(0)).sum((0, 1))
    return gw, (own * r * (v - y)).sum((0, 1))
