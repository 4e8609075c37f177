"""SSD in chunked PyTorch with an analytic backward: matrix products, linear in T, any device, nothing saved but the inputs.

Tokens are cut into chunks of L. With l_t = dt_t a, the inclusive sums Lam_t of l inside a chunk, w_ts = exp(Lam_t - Lam_s) for s <= t and
the state S that enters the chunk::

    y_t = sum_{s <= t} w_ts (C_t . B_s) dt_s x_s + exp(Lam_t) S C_t + D x_t
    S' = exp(Lam_L) S + sum_s exp(Lam_L - Lam_s) dt_s x_s B_s^T

The backward is the same scan from the right over R, the gradient of the state that leaves a chunk. With the gradient g of y,
q_ts = g_t . x_s and u_s = sum_t w_ts (C_t . B_s) g_t + exp(Lam_L - Lam_s) R B_s::

    gx_s = dt_s u_s + D g_s      gC_t = sum_s w_ts q_ts dt_s B_s + exp(Lam_t) S^T g_t
    gB_s = dt_s (sum_t w_ts q_ts C_t + exp(Lam_L - Lam_s) R^T x_s)
    gdt_s = u_s . x_s + a gl_s   gA = sum_s dt_s gl_s
    gl_m = sum_{s < m <= t} w_ts (C_t . B_s) q_ts dt_s + sum_{t >= m} exp(Lam_t) g_t . S C_t
         + sum_{s < m} exp(Lam_L - Lam_s) dt_s x_s . R B_s + exp(Lam_L) S . R

so that the gradient of a decay is made only of terms that the decay multiplies: no difference of large sums, exactly zero where it is zero.

Lam is summed in float64. A difference of two of them is taken from a high and a low part in the dtype of the arithmetic, so that a token
that forgets everything does not cost its neighbours their digits, and is masked before exp. Heads are independent up to the sums over the
heads of a group in gB and gC.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens per chunk: L of work per token inside the chunk against P N / L of memory for the states
ELEMENTS = {"cpu": 1 << 18}  # elements of w_ts worked on at once, by device type: a core's cache
ELEMENTS_ELSEWHERE = 1 << 26
ROWS = 128  # longest scan over chunks in one level
LOWEST = -1440.0  # smallest l, in powers of two: far below the smallest number of either dtype, and finite


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    dt_softplus: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, T, H, P) in the dtype of x and the last state (B, H, P, N) in the dtype of the arithmetic."""
    _, step = _step_size(x, dt, dt_bias, dt_softplus)
    y, state = _core(x, step, A, B, C, D, initial_states, causal)
    if z is not None:
        y.mul_(F.silu(z.to(y.dtype)))
    return y.to(x.dtype).contiguous(), state


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    gy: Tensor,
    gstate: Tensor,
    dt_softplus: bool,
    causal: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the nine tensors for the gradients gy (B, T, H, P) and gstate (B, H, P, N), each in its input's dtype."""
    raw, step = _step_size(x, dt, dt_bias, dt_softplus)
    gz = gbias = gD = None
    if z is not None:
        y, _ = _core(x, step, A, B, C, D, initial_states, causal)
        gz = torch.ops.aten.silu_backward(y.mul_(gy), z.to(y.dtype)).to(z.dtype)
        gy = F.silu(z.to(y.dtype)).mul_(gy)
    grads = (_Causal if causal else _NonCausal)(x, step, A, B, C, D, initial_states).backward(gy, gstate)
    gx, gstep, gA, gB, gC, ginitial = grads
    if D is not None:
        gD = (gy.to(step.dtype) * x.to(step.dtype)).sum((0, 1, 3) if D.dim() == 1 else (0, 1)).to(D.dtype)
    if dt_softplus:
        gstep = torch.ops.aten.softplus_backward(gstep, raw, 1, 20)
    if dt_bias is not None:
        gbias = gstep.sum((0, 1)).to(dt_bias.dtype)
    if initial_states is not None:
        ginitial = ginitial.to(initial_states.dtype, copy=True)
    grads = (gx, gstep.to(dt.dtype), gA.to(A.dtype), gB, gC, gD, gz, gbias, None if initial_states is None else ginitial)
    return tuple(None if g is None else g.contiguous() for g in grads)


def _step_size(x: Tensor, dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> tuple[Tensor, Tensor]:
    """(B, T, H) in the dtype of the arithmetic: dt with its bias, and the step size."""
    work = torch.promote_types(x.dtype, torch.float32)
    raw = dt.to(work) if dt_bias is None else dt.to(work) + dt_bias.to(work)
    return raw, F.softplus(raw) if dt_softplus else raw


def _core(x, step, A, B, C, D, initial_states, causal) -> tuple[Tensor, Tensor]:
    """y before the gate and the last state, both in the dtype of `step`."""
    y, state = (_Causal if causal else _NonCausal)(x, step, A, B, C, D, initial_states).forward()
    return y, state.reshape(x.shape[0], *x.shape[2:], B.shape[3]).clone()  # a view would keep the states of all chunks


class _NonCausal:
    """One state for all tokens, |a| dt_j as weight of a token: two matrix products."""

    def __init__(self, x, step, A, B, C, D, initial_states):
        self.x, self.work, self.D, self.A, self.step = x, step.dtype, D, A.to(step.dtype), step
        _, self.length, self.heads, self.size = x.shape
        self.groups = B.shape[2]
        self.B, self.C = (t.to(self.work).transpose(1, 2) for t in (B, C))  # (B, G, T, N)
        self.dtypes = B.dtype, C.dtype
        self.weighted = self._rows(x * (step * self.A.abs())[..., None])
        self.state = self.weighted.mT @ self.B  # (B, G, H / G P, N)
        if initial_states is not None:
            self.state += initial_states.to(self.work).reshape(self.state.shape)

    def _rows(self, x: Tensor) -> Tensor:
        """(B, T, H, P) -> (B, G, T, H / G P)."""
        return x.to(self.work).unflatten(2, (self.groups, self.heads // self.groups)).flatten(3).transpose(1, 2)

    def _heads(self, rows: Tensor) -> Tensor:
        """The inverse of _rows."""
        return rows.transpose(1, 2).reshape(self.x.shape)

    def forward(self) -> tuple[Tensor, Tensor]:
        y = self._heads(self.C @ self.state.mT)
        if self.D is not None:
            y = y.addcmul(self.x.to(self.work), self.D.to(self.work).reshape(self.heads, -1))
        return y, self.state

    def backward(self, gy: Tensor, gstate: Tensor) -> tuple[Tensor, ...]:
        g = self._rows(gy)
        gstate = (g.mT @ self.C).add_(gstate.to(self.work).reshape(self.state.shape))
        gC, gB = g @ self.state, self.weighted @ gstate
        u = self._heads(self.B @ gstate.mT)
        weight = torch.linalg.vecdot(u, self.x.to(self.work))
        gx = u * (self.step * self.A.abs())[..., None]
        if self.D is not None:
            gx.addcmul_(gy.to(self.work), self.D.to(self.work).reshape(self.heads, -1))
        pairs = zip((gB, gC), self.dtypes, strict=True)
        gB, gC = (t.transpose(1, 2).to(dtype) for t, dtype in pairs)
        gA = (weight * self.step).sum((0, 1)) * self.A.sign()
        return (
            gx.to(self.x.dtype),
            weight * self.A.abs(),
            gA,
            gB,
            gC,
            gstate.reshape(self.x.shape[0], self.heads, self.size, self.B.shape[3]),
        )


class _Causal:
    """The chunked scan. Shapes: K = B n chunks, G groups of h heads, L tokens per chunk."""

    def __init__(self, x, step, A, B, C, D, initial_states):
        self.work, self.device = step.dtype, x.device
        self.batch, self.length, heads, self.size = x.shape
        self.groups, self.states = B.shape[2:]
        self.heads, self.like = heads // self.groups, (x, B, C)
        self.chunk = min(CHUNK, max(1, self.length))
        self.count = -(-self.length // self.chunk)
        grouped = (self.groups, self.heads)
        self.x, self.B, self.C = self._split(x.unflatten(2, grouped)), self._split(B), self._split(C)  # (K, L, G, h, P), (K, L, G, N)
        self.dt = self._split(step.unflatten(2, grouped))
        self.A = A.to(self.work).view(grouped)
        self.D = None if D is None else D.to(self.work).reshape(*grouped, -1)
        log = (self.dt.double() * (self.A.double() / math.log(2))).clamp_(min=LOWEST)  # float64, powers of two
        self.sums = log.cumsum(1)  # Lam (K, L, G, h)
        self.total = self.sums[:, -1]
        self.decay = self.total.exp2().to(self.work)
        self.initial = initial_states

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (K, L, ...). What pads the last chunk is zero, a step size of zero included: such a token changes no state."""
        if pad := self.count * self.chunk - self.length:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad))
        return x.reshape(self.batch * self.count, self.chunk, *x.shape[2:])

    def _join(self, x: Tensor) -> Tensor:
        """(K, L, G, ...) -> (B, T, G, ...)."""
        return x.view(self.batch, self.count * self.chunk, *x.shape[2:])[:, : self.length]

    def _ranges(self) -> Iterator[slice]:
        """Slices of the K chunks, as many as fit the room for w_ts."""
        room = ELEMENTS.get(self.device.type, ELEMENTS_ELSEWHERE)
        per = max(1, room // (self.groups * self.heads * self.chunk**2))
        for first in range(0, self.batch * self.count, per):
            yield slice(first, first + per)

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(*shape, dtype=dtype or self.work, device=self.device)

    def _scan(self, chunk_sums, edge: Tensor | None, backwards: bool = False) -> Tensor:
        """States (B, n + 1, G, h P, N) between the chunks, from the edge (or 0) and each chunk's own sums: `chunk_sums(range)`."""
        shape = (self.groups, self.heads * self.size, self.states)
        states = self._empty(self.batch, self.count + 1, *shape)
        own = states[:, :-1] if backwards else states[:, 1:]
        flat = own.flatten(0, 1) if self.batch == 1 else self._empty(self.batch * self.count, *shape)
        for part in self._ranges():
            flat[part] = chunk_sums(part)
        if self.batch > 1:
            own.copy_(flat.view(own.shape))
        first = states[:, -1 if backwards else 0]
        if edge is None:
            first.zero_()
        else:
            first.copy_(edge.reshape(first.shape))
        log = self.total.view(self.batch, self.count, self.groups, self.heads, 1)
        rows = states.view(self.batch, self.count + 1, self.groups, self.heads, states.shape[3] * states.shape[4] // self.heads)
        if backwards:
            turned = rows.flip(1)
            _scan_rows(turned, log.flip(1))
            return turned.flip(1).view_as(states)
        _scan_rows(rows, log)
        return states

    def _per_chunk(self, states: Tensor, part: slice, leaving: bool) -> Tensor:
        """Of the states between chunks those that enter, or leave, the chunks of `part`: (k, G, h P, N)."""
        if self.batch == 1:
            return states[0, 1:][part] if leaving else states[0, :-1][part]
        index = torch.arange(self.batch * self.count, device=self.device)[part]
        return states.flatten(0, 1)[index + index // self.count + leaving]

    def _rows(self, x: Tensor) -> Tensor:
        """(k, L, G, h, P) -> (k, G, L, h P)."""
        return x.transpose(1, 2).flatten(3)

    def _cast(self, x: Tensor, part: slice) -> Tensor:
        return x[part].to(self.work)

    def _matrices(self, part: slice) -> tuple[Tensor, Tensor]:
        """B and C (k, G, L, N)."""
        return tuple(self._cast(t, part).transpose(1, 2) for t in (self.B, self.C))

    def _fade(self, part: slice) -> Tensor:
        """exp(Lam_L - Lam_s) (k, L, G, h)."""
        return (self.total[part, None] - self.sums[part]).exp2_().to(self.work)

    def _weights(self, part: slice) -> Tensor:
        """w_ts (k, G, h, L, L)."""
        sums = self.sums[part].permute(0, 2, 3, 1)
        high = sums.to(self.work)
        log = high[..., :, None] - high[..., None, :]
        if self.work != torch.float64:
            low = (sums - high).to(self.work)
            log.add_(low[..., :, None]).sub_(low[..., None, :])
        later = torch.ones(self.chunk, self.chunk, dtype=torch.bool, device=self.device).triu_(1)
        return log.masked_fill_(later, -math.inf).exp2_()

    def _enter(self) -> Tensor:
        """The states before every chunk, and the last one."""

        def chunk_sums(part: slice) -> Tensor:
            weight = self._fade(part).mul_(self.dt[part])
            return self._rows(self._cast(self.x, part) * weight[..., None]).mT @ self._matrices(part)[0]

        return self._scan(chunk_sums, self.initial)

    def forward(self) -> tuple[Tensor, Tensor]:
        states, y = self._enter(), self._empty(*self.x.shape)
        for part in self._ranges():
            x, (B, C) = self._cast(self.x, part), self._matrices(part)
            inter = (C @ self._per_chunk(states, part, False).mT).unflatten(3, (self.heads, self.size)).transpose(1, 2)
            torch.mul(inter, self.sums[part].exp2().to(self.work)[..., None], out=y[part])
            weights = self._weights(part).mul_((C @ B.mT)[:, :, None])
            y[part] += (weights @ (x * self.dt[part][..., None]).permute(0, 2, 3, 1, 4)).permute(0, 3, 1, 2, 4)
            if self.D is not None:
                y[part].addcmul_(x, self.D)
        return self._join(y).flatten(2, 3), states[:, -1]

    def backward(self, gy: Tensor, gstate: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, step size, A, B, C and the initial state."""
        g = self._split(gy.unflatten(2, (self.groups, self.heads)))
        before = self._enter()

        def chunk_sums(part: slice) -> Tensor:
            return self._rows(self._cast(g, part) * self.sums[part].exp2().to(self.work)[..., None]).mT @ self._matrices(part)[1]

        after = self._scan(chunk_sums, gstate, backwards=True)
        gx, gB, gC = (self._empty(*t.shape, dtype=like.dtype) for t, like in zip((self.x, self.B, self.C), self.like, strict=True))
        gdt, glog = self._empty(*self.dt.shape), self._empty(*self.dt.shape)
        for part in self._ranges():
            enter, leave = self._per_chunk(before, part, False), self._per_chunk(after, part, True)
            gx[part], gdt[part], glog[part], gB[part], gC[part] = self._chunk_gradients(part, self._cast(g, part), enter, leave)
        gA = (self.dt * glog).sum((0, 1)).flatten()
        gdt.addcmul_(glog, self.A)
        gx, gdt, gB, gC = (self._join(t) for t in (gx, gdt, gB, gC))
        initial = after[:, 0].reshape(self.batch, self.groups * self.heads, self.size, self.states)
        return gx.flatten(2, 3), gdt.flatten(2, 3), gA, gB, gC, initial

    def _chunk_gradients(self, part: slice, g: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor, ...]:
        """gx, u . x, gl, gB and gC of the chunks of `part`; g (k, L, G, h, P), states (k, G, h P, N)."""
        x, dt, (B, C) = self._cast(self.x, part), self.dt[part], self._matrices(part)
        grow, fade = self.sums[part].exp2().to(self.work), self._fade(part)
        heads = (self.heads, self.size)
        xh, gh = (t.permute(0, 2, 3, 1, 4) for t in (x, g))
        weights, scores = self._weights(part), (C @ B.mT)[:, :, None]
        right = (B @ leave.mT).unflatten(3, heads).transpose(1, 2) * fade[..., None]  # exp(Lam_L - Lam_s) R B_s
        u = right + ((weights * scores).mT @ gh).permute(0, 3, 1, 2, 4)
        gx = u * dt[..., None]
        if self.D is not None:
            gx.addcmul_(g, self.D)
        weights *= gh @ xh.mT
        weights *= dt.permute(0, 2, 3, 1)[..., None, :]  # w_ts q_ts dt_s
        shared, faded = weights.sum(2), fade * dt
        gC = shared @ B + self._rows(g * grow[..., None]) @ enter
        gB = shared.mT @ C + self._rows(x * faded[..., None]) @ leave
        inter = (C @ enter.mT).unflatten(3, heads).transpose(1, 2)
        left = (g * inter).sum(-1) * grow
        glog = left.flip(1).cumsum(1).flip(1)
        glog[:, 1:] += ((x * right).sum(-1) * dt)[:, :-1].cumsum(1)
        glog += (self.decay[part] * (enter * leave).unflatten(2, heads).sum((3, 4)))[:, None]
        glog += self._across(weights.mul_(scores)).permute(0, 3, 1, 2)
        return gx, (u * x).sum(-1), glog, gB.transpose(1, 2), gC.transpose(1, 2)

    def _across(self, terms: Tensor) -> Tensor:
        """sum_{s < m <= t} terms_ts for every m: (..., L, L) -> (..., L)."""
        before = torch.ones(self.chunk, self.chunk, dtype=self.work, device=self.device).triu_(1)  # [s < m]
        return (terms @ before).mul_(before.new_ones(before.shape).tril_()).sum(-2)


def _scan_rows(states: Tensor, log: Tensor) -> None:
    """In place: states_{c+1} += 2^{log_c} states_c along dimension 1; states (B, n + 1, ...), log (B, n, ...) in float64, of any sign.

    Above ROWS rows in two levels, groups of sqrt(n) rows side by side, then the groups, then the rows again.
    """
    n = log.shape[1]
    inner = math.isqrt(n) if n > ROWS else 1
    outer = n // inner if n > ROWS else 0
    if main := outer * inner:
        rows = states[:, 1 : main + 1].unflatten(1, (outer, inner))
        logs = log[:, :main].unflatten(1, (outer, inner))
        decay, reach = logs.exp2().to(states.dtype), logs.cumsum(2).exp2_().to(states.dtype)
        for j in range(1, inner):
            rows[:, :, j].addcmul_(decay[:, :, j], rows[:, :, j - 1])
        for i in range(outer):
            rows[:, i, -1].addcmul_(reach[:, i, -1], states[:, i * inner])
        heads = states[:, :main:inner]
        for j in range(inner - 1):
            rows[:, :, j].addcmul_(reach[:, :, j], heads)
    decay = log.exp2().to(states.dtype)
    for c in range(main, n):
        states[:, c + 1].addcmul_(decay[:, c], states[:, c])
