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
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30  # log scale of an empty sum: finite, so that the difference of two of them is not NaN
SAFE_EXPONENT = 30.0  # exp(+-2 * 30) times a key's own factor stays inside float32 with 10 digits to spare
SAFE_GROWTH = 20.0  # largest -w T of the fast path: beyond it one scale per chunk cannot serve both directions
BLOCK = 1 << 21  # elements of (T, C) worked on at once where calls are parallel: bounds the scratch memory
SERIAL = (1 << 15) - 1  # largest result that PyTorch computes on the calling CPU thread alone (below its grain size)
SERIAL_THREADS = 4  # up to so many threads, calls are kept serial
KEPT = 1 << 22  # largest scratch buffer, in elements, that outlives a call; a thread has up to four
Block = tuple[slice, slice, slice]  # an index into (B, T, C)


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(C,), (C,), (B, T, C), (B, T, C) -> y (B, T, C) in the dtype of k; float32 inside for half precision."""
    y = torch.empty_like(k, memory_format=torch.contiguous_format)

    def run(chunk: int, block: Block) -> None:
        args = _cast(k.dtype, w[block[2]], u[block[2]], k[block], v[block])
        if chunk:
            _Chunks(*args, chunk).forward(y[block])
        else:
            _tokens_forward(*args, y[block])

    _run_blocks(run, w, u, k)
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype."""
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    gw, gu = (torch.zeros_like(x, dtype=torch.promote_types(k.dtype, torch.float32)) for x in (w, u))

    def run(chunk: int, block: Block) -> tuple[Tensor, Tensor]:
        *args, g = _cast(k.dtype, w[block[2]], u[block[2]], k[block], v[block], gy[block])
        function = _Chunks(*args, chunk).backward if chunk else partial(_tokens_backward, *args)
        return function(g, gk[block], gv[block])

    for block, (part_w, part_u) in _run_blocks(run, w, u, k):
        gw[block[2]] += part_w
        gu[block[2]] += part_u
    return gw.to(w.dtype), gu.to(u.dtype), gk, gv


def _cast(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The dtype of the arithmetic: float64 stays, everything else is float32."""
    return tuple(x.to(torch.promote_types(dtype, torch.float32)) for x in tensors)


def _run_blocks(run: Callable[[int, Block], object], w: Tensor, u: Tensor, k: Tensor) -> list[tuple[Block, object]]:
    """Calls run(chunk length, block) for independent blocks that cover k, and returns what they returned."""
    if 0 in k.shape:
        return []
    batch, length, channels = k.shape
    chunk = _chunk_length(w, u, length)
    if chunk and _serial(k):  # (batch, channel) pairs in a block; a fifth of the room is for the padding of _linear_scan
        room = max(16, 4 * SERIAL // 5 // (2 * -(-length // chunk)))
    else:
        room = max(16, BLOCK // length)
    cols = -(-channels // -(-channels // room))
    rows = max(1, room // channels)
    blocks = [(slice(b, b + rows), slice(None), slice(c, c + cols)) for c in range(0, channels, cols) for b in range(0, batch, rows)]
    return [(block, run(chunk, block)) for block in blocks]


def _serial(x: Tensor) -> bool:
    """Whether calls are made small enough to stay on the calling thread.

    A pass over a chunk is hundreds of short calls. Each parallel one ends in a barrier: with few threads that costs about what it gains,
    and one thread that waits for a core (on a busy machine) stalls them all, for a hundred times the work.
    """
    return x.device.type == "cpu" and torch.get_num_threads() <= SERIAL_THREADS


def _chunk_length(w: Tensor, u: Tensor, length: int) -> int:
    """Tokens per chunk of the fast path, 0 where only the token path is safe (NaN parameters included). Reads three numbers on the host."""
    low, high = (x.item() for x in w.aminmax())
    if not (-low * length <= SAFE_GROWTH and u.abs().max().item() <= SAFE_EXPONENT):
        return 0
    longest = SAFE_EXPONENT / max(abs(low), abs(high), 1e-9)
    if not longest >= min(8, length):
        return 0
    ideal = math.isqrt(
        length
    )  # balances steps and chunks; from 1024 tokens on fewer chunks, so that longer rows of channels fit into a call
    top = int(min(128, ideal if length < 1024 else 2 * ideal, longest))
    divisors = [d for d in range(top, (top + 1) // 2, -1) if length % d == 0]
    return divisors[0] if divisors else top


class _Scratch(threading.local):
    """Large buffers of serial calls, kept for the thread's next block and call: touching fresh memory costs as much as the arithmetic."""

    def __init__(self):
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape: the same memory for the same name, unless it is too much to keep."""
        size, key = math.prod(shape), (name, like.dtype)
        if not _serial(like) or size > KEPT:
            return like.new_empty(shape)
        if key not in self.buffers or self.buffers[key].numel() < size:
            with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
                self.buffers[key] = torch.empty(size, dtype=like.dtype)
        return self.buffers[key][:size].view(shape)


_scratch = _Scratch()


def _linear_scan(g: Tensor, x: Tensor) -> Tensor:
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


def _envelope(m: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Largest log scale that reaches each row of m (..., n, C) from left and right, itself included; `step` (C,) is lost per row."""
    ramp = torch.arange(m.shape[-2], dtype=m.dtype, device=m.device)[:, None] * step
    left = (m + ramp).cummax(-2).values - ramp
    right = (m - ramp).flip(-2).cummax(-2).values.flip(-2) + ramp
    return left, right


def _exp(x: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(x). On a CPU torch.exp calls a math library that is slower than exp2 and wakes its thread pool for the shortest of tensors."""
    return torch.mul(x, 1 / math.log(2), out=out).exp2_()


class _Chunks:
    """One block in chunks of `length` tokens. Scratch is (L, 2, B, n, C): step inside the chunk, (den, num), batch, chunk, channel."""

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, length: int):
        self.tokens, self.length = k.shape[1], length
        self.count = -(-self.tokens // length)
        self.lam, self.eu = (_exp(x.double()).to(k.dtype) for x in (-w, u))
        k, self.v = self._split(k, -math.inf), self._split(v, 0.0)
        scale, step = k[0].clone(), w.double() * length  # (B, n, C), (C,)
        for row in k.unbind(0)[1:]:
            torch.maximum(scale, row, out=scale)
        scale = self._scale(scale.double(), step).to(k.dtype)
        jump = scale.double().diff(dim=1)  # (B, n - 1, C)
        # what a state is multiplied with when it enters the next chunk, or the previous one, whose sums have another scale
        self.ahead, self.back, self.decay = _exp(-jump), _exp(jump), _exp(-step)
        self.x = _scratch.take("x", (length, 2, *k.shape[1:]), k)
        weight, value = self.x[:, 0], self.x[:, 1]
        self.total = torch.zeros_like(self.x[0])  # of every chunk, as its successor sees it; summed here, while x is in cache
        for rows in self._groups(weight):
            p = torch.sub(k[rows], scale, out=weight[rows])
            torch.mul(_exp(p, out=p), self.v[rows], out=value[rows])
            for step in self.x[rows].unbind(0):
                torch.addcmul(step, self.total, self.lam, out=self.total)

    @staticmethod
    def _scale(m: Tensor, step: Tensor) -> Tensor:
        """Largest log-weight that reaches each chunk: its own keys m (B, n, C), or those of other chunks, decayed on the way."""
        left, right = _envelope(m, step)
        torch.maximum(m[:, 1:], left[:, :-1], out=m[:, 1:])
        torch.maximum(m[:, :-1], right[:, 1:], out=m[:, :-1])
        return m

    def _split(self, x: Tensor, fill: float) -> Tensor:
        """(B, T, C) -> (L, B, n, C), padded at the end."""
        if pad := self.count * self.length - x.shape[1]:
            x = F.pad(x, (0, 0, 0, pad), value=fill)
        return x.unflatten(1, (self.count, self.length)).permute(2, 0, 1, 3)

    def _groups(self, x: Tensor) -> Iterator[slice]:
        """Slices of the steps of x (L, ...): as many at a time as make a serial call, or all."""
        per = max(1, SERIAL // x[0].numel()) if _serial(x) else self.length
        for j in range(0, self.length, per):
            yield slice(j, j + per)

    def _each(self, op: Callable, *args: Tensor, out: Tensor) -> None:
        """op(*args, out=out) over all steps (L, ...); what has fewer dimensions is the same for every step."""
        for rows in self._groups(out):
            op(*(x[rows] if x.dim() == out.dim() else x for x in args), out=out[rows])

    def _fill(self, op: Callable, *args: Tensor, out: Tensor) -> None:
        """op(*args), of (L, B, n, C), into out (B, T, C)."""
        whole = self._target(out)
        self._each(op, *args, out=self._split(whole, 0.0))
        if whole is not out:
            out.copy_(whole[:, : self.tokens])

    def _target(self, out: Tensor) -> Tensor:
        """(B, n L, C): `out` itself, or a larger tensor where the last chunk is not full."""
        missing = self.count * self.length - self.tokens
        return out.new_empty(out.shape[0], self.tokens + missing, out.shape[2]) if missing else out

    def _sweep(self, x: Iterable[Tensor], state: Tensor) -> Iterator[Tensor]:
        """state <- lam state + x_j, in place, for each j in the order given; yields the state before each update."""
        for step in x:
            yield state
            torch.addcmul(step, state, self.lam, out=state)

    def _total(self, x: tuple[Tensor, ...]) -> Tensor:
        """The last state of a sweep that starts from zero."""
        total = torch.zeros_like(x[0])
        for step in x:
            torch.addcmul(step, total, self.lam, out=total)
        return total

    def _incoming(self, total: Tensor, rescale: Tensor, backwards: bool) -> Tensor:
        """Chunk totals (2, B, n, C) -> sums entering every chunk from its left, or its right, in the scale of the chunk that they enter."""
        if backwards:
            total, rescale = total.flip(-2), rescale.flip(-2)
        state = torch.zeros_like(total)
        if self.count > 1:
            local, decay = total[..., :-1, :].to(rescale.dtype).mul_(rescale), (rescale * self.decay)[None]
            state[..., 1:, :] = torch.addcmul(local, _linear_scan(decay, local), decay)
        return state.flip(-2) if backwards else state

    def forward(self, out: Tensor) -> None:
        """Writes y (B, T, C) into out."""
        sums, x = _scratch.take("sums", self.x.shape, self.x), self.x.unbind(0)
        prefix, suffix = self._incoming(self.total, self.ahead, False), self._incoming(self._total(x[::-1]), self.back, True)
        for step, state, total in zip(x, self._sweep(x, prefix), sums.unbind(0), strict=True):
            torch.addcmul(state, step, self.eu, out=total)
        whole = self._target(out)
        y = self._split(whole, 0.0)
        for rows in reversed(list(self._groups(y))):
            for state, total in zip(self._sweep(self.x[rows].unbind(0)[::-1], suffix), sums[rows].unbind(0)[::-1], strict=True):
                total.add_(state)
            torch.div(sums[rows, 1], sums[rows, 0], out=y[rows])
        if whole is not out:
            out.copy_(whole[:, : self.tokens])

    def backward(self, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
        """Writes gk and gv (B, T, C), returns gw and gu (C,)."""
        x = self.x.unbind(0)
        before, after, grads = (_scratch.take(name, self.x.shape, self.x) for name in ("before", "after", "grads"))
        f, s, g = before.unbind(0), after.unbind(0), grads.unbind(0)
        self._keep(x, self._incoming(self.total, self.ahead, False), f)
        self._keep(x[::-1], self._incoming(self._total(x[::-1]), self.back, True), s[::-1])
        self._each(torch.addcmul, before, self.x, self.eu, out=grads)
        self._each(torch.add, grads, after, out=grads)
        self._adjoint(grads[:, 0], grads[:, 1], self._split(gy, 0.0))
        # adjoint sums carry exp(+scale) where the sums carry exp(-scale): the factors of the two directions trade places
        prefix, suffix = self._incoming(self._total(g), self.back, False), self._incoming(self._total(g[::-1]), self.ahead, True)
        gu, gw = torch.zeros_like(prefix), torch.zeros_like(prefix)
        for j, state in enumerate(self._sweep(g, prefix)):
            gw.addcmul_(state, s[j])
            gu.addcmul_(g[j], x[j])
            torch.addcmul(state, g[j], self.eu, out=s[j])
        for j, state in enumerate(self._sweep(g[::-1], suffix), start=1):
            gw.addcmul_(state, f[-j])
            s[-j].add_(state)
        den, num, weight = after[:, 0], after[:, 1], self.x[:, 0]
        self._fill(torch.mul, num, weight, out=gv)
        self._each(torch.addcmul, den, num, self.v, out=den)
        self._fill(torch.mul, den, weight, out=gk)
        return -self.lam * gw.sum((0, 1, 2)), self.eu * gu.sum((0, 1, 2))

    def _adjoint(self, den: Tensor, num: Tensor, gy: Tensor) -> None:
        """(den, num) of the result -> its gradient (-r y, r) with r = gy / den, in place."""
        for rows in self._groups(den):
            r = gy[rows] / den[rows]
            torch.div(num[rows], den[rows], out=den[rows]).mul_(r).neg_()
            num[rows] = r

    def _keep(self, x: tuple[Tensor, ...], state: Tensor, out: tuple[Tensor, ...]) -> None:
        """The states of a sweep, all kept: out_0 = state, out_{j+1} = lam out_j + x_j."""
        out[0].copy_(state)
        for j in range(len(x) - 1):
            torch.addcmul(x[j], out[j], self.lam, out=out[j + 1])


def _effective(w: Tensor, k: Tensor) -> Tensor:
    """w (C,), limited to the spread of a channel's keys: more decay or growth changes no weight, but drowns the keys in rounding."""
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
    """What both directions of the token path share: w in effect, the two sums, log scale of the total, own weight, denominator, y."""
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
