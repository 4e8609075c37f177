"""Bi-WKV in chunked PyTorch with an analytic backward: linear in T, any device, nothing saved but the inputs.

Write lam = exp(-w), p_i = exp(k_i - M), x_i = (p_i, p_i v_i). The two exclusive sums, prefix F_{t+1} = lam F_t + x_t and suffix
S_{t-1} = lam S_t + x_t, give  (den, num) = F_t + S_t + exp(u) x_t  and  y = num / den.  With r = gy / den and g = (-r y, r) the backward
needs the same two sums of g, call them P (prefix) and Q (suffix); G = P + Q + exp(u) g then gives

    gv = p G_num        gk = p (G_num v + G_den)        gu = exp(u) sum_t g . x        gw = -lam sum_t (Q . F + P . S)

with no subtraction of large sums anywhere. Two evaluations share this algebra:

- `_Chunks`, the fast one. Tokens are cut into chunks of L; each step inside a chunk is one operation on many chunks. Every chunk has
  one log scale M, the largest log-weight that reaches any of its tokens up to one chunk of decay; chunk states are joined in float64. Safe
  while exp(|w| L), exp(|u|) and exp(-w T) stay far inside the float32 range. A long sequence is worked off in spans of chunks, which
  are weighed again for every pass: scratch memory stays in the cache, and the cost per token the same.
- `torch_tokens`, for every other w and u: a log scale per token, all factors <= 1, in float64. Several times slower, still linear in T.

Channels are independent, in both: a NaN in one channel stays there.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_tokens import envelope, linear_scan, tokens_backward, tokens_forward

SAFE_EXPONENT = 30.0  # exp(+-2 * 30) times a key's own factor stays inside float32 with 10 digits to spare
SAFE_GROWTH = 20.0  # largest -w T of the fast path: beyond it one scale per chunk cannot serve both directions
BLOCK = 1 << 21  # elements of (tokens, C) in a span where calls are parallel: bounds the scratch memory
SERIAL = (1 << 15) - 1  # largest result that PyTorch computes on the calling CPU thread alone (below its grain size)
SERIAL_THREADS = 4  # up to so many threads, the calls for one step are kept serial
SHARED = 1 << 19  # elements of a call over several steps, which threads share: it outweighs a barrier and fits into a cache
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
            tokens_forward(*args, y[block])

    _run_blocks(run, w, u, k)
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype."""
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    gw, gu = (torch.zeros_like(x, dtype=torch.promote_types(k.dtype, torch.float32)) for x in (w, u))

    def run(chunk: int, block: Block) -> tuple[Tensor, Tensor]:
        *args, g = _cast(k.dtype, w[block[2]], u[block[2]], k[block], v[block], gy[block])
        function = _Chunks(*args, chunk).backward if chunk else partial(tokens_backward, *args)
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
    chunks = -(-length // chunk) if chunk else 1
    room = _step_size(k, chunk) if chunk else max(16, BLOCK // length)  # (batch, channel) pairs in a block, times its chunks
    rows = _share(batch, room // (channels * chunks))
    cols = _share(channels, room)
    blocks = [(slice(b, b + rows), slice(None), slice(c, c + cols)) for c in range(0, channels, cols) for b in range(0, batch, rows)]
    return [(block, run(chunk, block)) for block in blocks]


def _share(total: int, most: int) -> int:
    """`total` in equal shares of at most `most`, but at least one: the size of a share."""
    return -(-total // -(-total // max(1, most)))


def _step_size(k: Tensor, chunk: int) -> int:
    """(batch, chunk, channel) triples that one call for one step of all chunks works on."""
    return SERIAL // 2 if _serial(k) else BLOCK // chunk


def _serial(x: Tensor) -> bool:
    """Whether the calls for one step of all chunks are made small enough to stay on the calling thread.

    A pass over a chunk is hundreds of them. Each parallel one ends in a barrier: with few threads that costs about what it gains,
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
    # balances steps and chunks; from 1024 tokens on fewer chunks, so that longer rows of channels fit into a call
    ideal = math.isqrt(length)
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


def _exp(x: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(x). On a CPU torch.exp calls a math library that is slower than exp2 and wakes its thread pool for the shortest of tensors."""
    return torch.mul(x, 1 / math.log(2), out=out).exp2_()


class _Chunks:
    """One block in chunks of `length` tokens. Scratch of a span of n chunks is (L, 2, B, n, C): step, (den, num), batch, chunk, channel."""

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, length: int):
        self.tokens, self.length = k.shape[1], length
        self.count = -(-self.tokens // length)
        self.lam, self.eu = (_exp(x.double()).to(k.dtype) for x in (-w, u))
        size = _share(self.count, _step_size(k, length) // (k.shape[0] * k.shape[2]))
        self.spans = [slice(j, min(j + size, self.count)) for j in range(0, self.count, size)]
        self.weighed = self.swept = None  # the spans whose x, and whose f and s, are at hand
        self.k, self.v = self._split(k, -math.inf), self._split(v, 0.0)
        step = w.double() * length
        self.scale = self._scale(self.k.amax(0).double(), step).to(k.dtype)  # (B, n, C)
        jump = self.scale.double().diff(dim=1)  # (B, n - 1, C)
        # what a state is multiplied with when it enters the next chunk, or the previous one, whose sums have another scale
        self.ahead, self.back, self.decay = _exp(-jump), _exp(jump), _exp(-step)
        right, left = self._no_sums(), self._no_sums()  # of every chunk, as the next one and the previous one see it
        powers = _exp(-w.double() * torch.arange(length, device=w.device)[:, None]).to(k.dtype).unbind(0)
        for span in self.spans:
            self._weigh(span, (right[..., span, :], left[..., span, :], powers))
        self.prefix, self.suffix = self._incoming(right, self.ahead, False), self._incoming(left, self.back, True)

    @staticmethod
    def _scale(m: Tensor, step: Tensor) -> Tensor:
        """Largest log-weight that reaches each chunk: its own keys m (B, n, C), or those of other chunks, decayed on the way."""
        left, right = envelope(m, step)
        torch.maximum(m[:, 1:], left[:, :-1], out=m[:, 1:])
        torch.maximum(m[:, :-1], right[:, 1:], out=m[:, :-1])
        return m

    def _split(self, x: Tensor, fill: float) -> Tensor:
        """(B, T, C) -> (L, B, n, C), padded at the end."""
        if pad := self.count * self.length - x.shape[1]:
            x = F.pad(x, (0, 0, 0, pad), value=fill)
        return x.unflatten(1, (self.count, self.length)).permute(2, 0, 1, 3)

    def _target(self, out: Tensor) -> Tensor:
        """(B, n L, C): `out` itself, or a larger tensor where the last chunk is not full."""
        missing = self.count * self.length - self.tokens
        return out.new_empty(out.shape[0], self.tokens + missing, out.shape[2]) if missing else out

    def _finish(self, whole: Tensor, out: Tensor) -> None:
        if whole is not out:
            out.copy_(whole[:, : self.tokens])

    def _no_sums(self) -> Tensor:
        """Zeros (2, B, n, C), for the (den, num) of every chunk."""
        return self.scale.new_zeros(2, *self.scale.shape)

    def _groups(self, x: Tensor) -> Iterator[slice]:
        """Slices of the steps of x (L, ...): as many at a time as fit into a cache, or all."""
        per = max(1, SHARED // x[0].numel()) if _serial(x) else self.length
        for j in range(0, self.length, per):
            yield slice(j, j + per)

    def _each(self, op: Callable, *args: Tensor, out: Tensor) -> None:
        """op(*args, out=out) over all steps (L, ...); what has fewer dimensions is the same for every step."""
        for rows in self._groups(out):
            op(*(x[rows] if x.dim() == out.dim() else x for x in args), out=out[rows])

    def _weigh(self, span: slice, totals: tuple[Tensor, Tensor, tuple[Tensor, ...]] | None = None) -> Tensor:
        """x (L, 2, B, n, C) of a span. While it is in the cache it is added up in `totals`: two tensors (2, B, n, C), as the next and the
        previous chunk see it, and the powers of lam for the latter."""
        if span == self.weighed:
            return self.x
        k, v, scale = self.k[:, :, span], self.v[:, :, span], self.scale[:, span]
        self.x, self.weighed = _scratch.take("x", (self.length, 2, *k.shape[1:]), k), span
        weight, value = self.x[:, 0], self.x[:, 1]
        for rows in self._groups(weight):
            p = torch.sub(k[rows], scale, out=weight[rows])
            torch.mul(_exp(p, out=p), v[rows], out=value[rows])
            if totals is not None:
                right, left, powers = totals
                for step, power in zip(self.x[rows].unbind(0), powers[rows], strict=True):
                    torch.addcmul(step, right, self.lam, out=right)
                    left.addcmul_(step, power)
        return self.x

    def _sweep(self, x: Iterable[Tensor], state: Tensor) -> Iterator[Tensor]:
        """state <- lam state + x_j, in place, for each j in the order given; yields the state before each update."""
        for step in x:
            yield state
            torch.addcmul(step, state, self.lam, out=state)

    def _total(self, x: Iterable[Tensor], total: Tensor) -> None:
        """The last state of a sweep, in place."""
        for step in x:
            torch.addcmul(step, total, self.lam, out=total)

    def _keep(self, x: tuple[Tensor, ...], state: Tensor, out: tuple[Tensor, ...]) -> None:
        """The states of a sweep, all kept: out_0 = state, out_{j+1} = lam out_j + x_j."""
        out[0].copy_(state)
        for j in range(len(x) - 1):
            torch.addcmul(x[j], out[j], self.lam, out=out[j + 1])

    def _incoming(self, total: Tensor, rescale: Tensor, backwards: bool) -> Tensor:
        """Chunk totals (2, B, n, C) -> sums entering every chunk from its left, or its right, in the scale of the chunk that they enter."""
        if backwards:
            total, rescale = total.flip(-2), rescale.flip(-2)
        state = torch.zeros_like(total)
        if self.count > 1:
            local, decay = total[..., :-1, :].to(rescale.dtype).mul_(rescale), (rescale * self.decay)[None]
            state[..., 1:, :] = torch.addcmul(local, linear_scan(decay, local), decay)
        return state.flip(-2) if backwards else state

    def forward(self, out: Tensor) -> None:
        """Writes y (B, T, C) into out."""
        whole = self._target(out)
        y = self._split(whole, 0.0)
        for span in reversed(self.spans):  # the last one is weighed already
            x = self._weigh(span)
            self._write(x, self.prefix[..., span, :], self.suffix[..., span, :], y[:, :, span])
        self._finish(whole, out)

    def _write(self, x: Tensor, prefix: Tensor, suffix: Tensor, y: Tensor) -> None:
        """y (L, B, n, C) of a span, from its x and what enters its chunks, which is overwritten."""
        sums, steps = _scratch.take("sums", x.shape, x), x.unbind(0)
        for step, state, total in zip(steps, self._sweep(steps, prefix), sums.unbind(0), strict=True):
            torch.addcmul(state, step, self.eu, out=total)
        for rows in reversed(list(self._groups(y))):
            for state, total in zip(self._sweep(x[rows].unbind(0)[::-1], suffix), sums[rows].unbind(0)[::-1], strict=True):
                total.add_(state)
            torch.div(sums[rows, 1], sums[rows, 0], out=y[rows])

    def backward(self, gy: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
        """Writes gk and gv (B, T, C), returns gw and gu (C,)."""
        gy = self._split(gy, 0.0)
        right, left = self._no_sums(), self._no_sums()
        adjoints = [self._adjoint(span, gy[:, :, span]) for span in self.spans]
        for span, g in zip(self.spans, adjoints, strict=True):
            self._total(g.unbind(0), right[..., span, :])
            self._total(g.unbind(0)[::-1], left[..., span, :])
        # adjoint sums carry exp(+scale) where the sums carry exp(-scale): the factors of the two directions trade places
        prefix, suffix = self._incoming(right, self.back, False), self._incoming(left, self.ahead, True)
        whole_k, whole_v = self._target(gk), self._target(gv)
        out_k, out_v = self._split(whole_k, 0.0), self._split(whole_v, 0.0)
        gw, gu = torch.zeros_like(self.lam), torch.zeros_like(self.lam)
        for span, g in reversed(list(zip(self.spans, adjoints, strict=True))):  # the states of the last one are at hand
            incoming = prefix[..., span, :], suffix[..., span, :]
            part_w, part_u = self._write_gradients(span, g, *incoming, out_k[:, :, span], out_v[:, :, span])
            gw += part_w
            gu += part_u
        self._finish(whole_k, gk)
        self._finish(whole_v, gv)
        return -self.lam * gw, self.eu * gu

    def _states(self, span: slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, f and s of every token of a span, (L, 2, B, n, C) each."""
        x = self._weigh(span)
        if span != self.swept:
            self.f, self.s, self.swept = _scratch.take("f", x.shape, x), _scratch.take("s", x.shape, x), span
            self._keep(x.unbind(0), self.prefix[..., span, :], self.f.unbind(0))
            self._keep(x.unbind(0)[::-1], self.suffix[..., span, :], self.s.unbind(0)[::-1])
        return x, self.f, self.s

    def _adjoint(self, span: slice, gy: Tensor) -> Tensor:
        """g = (-r y, r) with r = gy / den, (L, 2, B, n, C), of a span."""
        x, f, s = self._states(span)
        g = _scratch.take("g", x.shape, x) if len(self.spans) == 1 else torch.empty_like(x)
        self._each(torch.addcmul, f, x, self.eu, out=g)
        self._each(torch.add, g, s, out=g)
        den, num = g[:, 0], g[:, 1]
        for rows in self._groups(den):
            r = gy[rows] / den[rows]
            torch.div(num[rows], den[rows], out=den[rows]).mul_(r).neg_()
            num[rows] = r
        return g

    def _write_gradients(self, span: slice, g: Tensor, prefix: Tensor, suffix: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor]:
        """gk and gv (L, B, n, C) of a span, from its adjoints and what enters its chunks, which is overwritten; its share of the sums for
        gw and gu."""
        x, f, s = self._states(span)
        self.swept = None  # s makes room for P + Q + exp(u) g
        gu, gw = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for j, state in enumerate(self._sweep(g.unbind(0), prefix)):
            gw.addcmul_(state, s[j])
            gu.addcmul_(g[j], x[j])
            torch.addcmul(state, g[j], self.eu, out=s[j])
        for j, state in enumerate(self._sweep(g.unbind(0)[::-1], suffix), start=1):
            gw.addcmul_(state, f[-j])
            s[-j].add_(state)
        den, num, weight = s[:, 0], s[:, 1], x[:, 0]
        self._each(torch.mul, num, weight, out=gv)
        self._each(torch.addcmul, den, num, self.v[:, :, span], out=den)
        self._each(torch.mul, den, weight, out=gk)
        return gw.sum((0, 1, 2)), gu.sum((0, 1, 2))
