"""VMamba's token mixers: state space models along four paths over the image.

"VMamba: Visual State Space Model" (arXiv 2401.10166, SS2D, section 4) and its form with Mamba-2's scan (arXiv 2405.21060).

Tokens x (B, L, C), row-major over a grid (H, W); inner width D; four directions k: row by row, column by column, and both from the end.

    x, z = in_proj(x)                                  (B, L, D) each; z only with a gate
    x = act(conv(x))                                   depthwise 3x3 on the map
    s_k, B_k, C_k = x_proj_k x                         per token: R, N, N numbers
    y = sum_k scan_k(x; step size, A_k, B_k, C_k, D_k) each along its path, put back on the map
    out = out_proj(LN(y) [act(z)])

`SS2D` scans with Mamba's S6: a state of N numbers per channel, step sizes softplus(dt_proj_k s_k + dt_bias_k) per channel, A (D, N).
`SSD2D` scans with Mamba-2's SSD: R heads of P = D / R channels, a state (P, N) per head, step sizes softplus(s_k + dt_bias_k) per head,
one A per head.

The projections are without bias. What the official code calls channel-first ("ln2d") and channel-last ("ln") is one function in two
memory layouts; here tokens are channels-last throughout, and the scans read the map as it lies.
"""

import math

import torch
from torch import Tensor, nn

from ..kernels.cross_scan import cross_merge, cross_scan
from ..kernels.selective_scan import cross_selective_scan, selective_scan
from ..kernels.ssd import ssd
from .layers import LayerContext, to_map
from .names import choose

DIRECTIONS = 4
ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


class CrossScanMixer(nn.Module):
    """What stands around the scans; see the module's docstring. A subclass implements `scan`.

    Args:
        context: see `LayerContext`; only the width C is read.
        ssm_ratio: D / C.
        gate: multiply the output with act(z).
        conv_bias: whether the depthwise convolution has a bias.
        activation: "silu" or "gelu", after the convolution and of the gate.
    """

    def __init__(self, context: LayerContext, *, ssm_ratio: float, gate: bool, conv_bias: bool, activation: str) -> None:
        super().__init__()
        if isinstance(ssm_ratio, bool) or not isinstance(ssm_ratio, int | float) or int(ssm_ratio * context.dim) < 1:
            raise ValueError(f"ssm_ratio must be a positive number, got {ssm_ratio!r}")
        dim, self.width = context.dim, int(ssm_ratio * context.dim)
        self.gate = gate
        self.activation = choose(activation, ACTIVATIONS, "activation")()
        self.in_proj = nn.Linear(dim, (2 if gate else 1) * self.width, bias=False)
        self.conv = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width, bias=conv_bias)
        self.out_norm = nn.LayerNorm(self.width)
        self.out_proj = nn.Linear(self.width, dim, bias=False)

    def no_weight_decay(self) -> set[str]:
        return {"A_log", "D", "dt_bias"}

    def scan(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) -> sum of the four scans, (B, L, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = self.in_proj(x)
        x, z = x.chunk(2, dim=-1) if self.gate else (x, None)
        y = self.out_norm(self.scan(self.activation(self.conv(to_map(x, grid)))))
        return self.out_proj(y if z is None else y * self.activation(z))

    def rates(self) -> Tensor:
        """A = -exp(A_log), at least in float32: a rounding of A acts on all steps alike."""
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()


class SS2D(CrossScanMixer):
    """VMamba's 2-D selective scan.

    The published variants: "v05_noz" is `d_state=1` without gate or bias, ssm_ratio 1 or 2; "v0", the first release, is `d_state=16`,
    ssm_ratio 2, with `gate` and `conv_bias`.

    Initial values: A = -(1 .. N), D = 1, dt_proj uniform within R^-1/2, softplus(dt_bias) log-uniform in [1e-3, 1e-1], as in Mamba; x_proj
    uniform within D^-1/2, as PyTorch's linears.

    Args:
        context, ssm_ratio, gate, conv_bias, activation: see `CrossScanMixer`.
        d_state: N, states per channel.
        rank: R, the width from which step sizes are projected; None for ceil(C / 16).
        fused: True takes `cross_selective_scan`, which walks the image itself; False takes `cross_scan`, `selective_scan` and
            `cross_merge`, with four copies of the image in memory. The values are the same. None takes the copies on a CPU, where the scan
            of sequences is compiled and therefore faster, copies included, and the fused operator elsewhere, which moves fewer bytes
            (kernels/selective_scan/README.md; not timed on a GPU). In training the choice is the same.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        context: LayerContext,
        *,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        gate: bool = False,
        conv_bias: bool = False,
        activation: str = "silu",
        rank: int | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(context, ssm_ratio=ssm_ratio, gate=gate, conv_bias=conv_bias, activation=activation)
        self.fused = fused
        self.d_state, self.rank, width = _positive("d_state", d_state), _rank("rank", rank, context.dim), self.width
        self.x_proj = _uniform(DIRECTIONS, self.rank + 2 * d_state, width, bound=width**-0.5)
        self.dt_proj = _uniform(DIRECTIONS, width, self.rank, bound=self.rank**-0.5)
        step = torch.exp(torch.rand(DIRECTIONS, width) * math.log(1e-1 / 1e-3) + math.log(1e-3))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(DIRECTIONS * width, 1))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * width))

    def scan(self, x: Tensor) -> Tensor:
        fused = x.device.type != "cpu" if self.fused is None else self.fused
        return self._scan_image(x) if fused else self._scan_sequences(x)

    def _scan_image(self, x: Tensor) -> Tensor:
        # One product with the image for all directions: (4 (R + 2 N), D) (B, D, L).
        projected = (self.x_proj.flatten(0, 1) @ x.flatten(2)).unflatten(1, (DIRECTIONS, -1))
        step, b, c = projected.split((self.rank, self.d_state, self.d_state), dim=2)
        y = cross_selective_scan(x, self.dt_proj @ step, self.rates(), b, c, self.D, self.dt_bias.flatten(), delta_softplus=True)
        return y.flatten(2).transpose(1, 2)

    def _scan_sequences(self, x: Tensor) -> Tensor:
        sequences = cross_scan(x)  # (B, 4, D, L)
        step, b, c = (self.x_proj @ sequences).split((self.rank, self.d_state, self.d_state), dim=2)
        step = self.dt_proj @ step
        y = selective_scan(
            sequences.flatten(1, 2), step.flatten(1, 2), self.rates(), b, c, self.D, None, self.dt_bias.flatten(), delta_softplus=True
        )
        return cross_merge(y.unflatten(1, (DIRECTIONS, -1)), (x.shape[2], x.shape[3])).transpose(1, 2)


class SSD2D(CrossScanMixer):
    """The same four scans with Mamba-2's SSD; the published variant "m0_noz" is these defaults.

    Initial values: A = -1, D = 1, dt_bias uniform in [0, 0.1), x_proj uniform within D^-1/2.

    Args:
        context, ssm_ratio, gate, conv_bias, activation: see `CrossScanMixer`.
        d_state: N, the state of a head is (P, N).
        heads: R, per direction; must divide D. None for ceil(C / 16).

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        context: LayerContext,
        *,
        d_state: int = 64,
        ssm_ratio: float = 1.0,
        gate: bool = False,
        conv_bias: bool = False,
        activation: str = "gelu",
        heads: int | None = None,
    ) -> None:
        super().__init__(context, ssm_ratio=ssm_ratio, gate=gate, conv_bias=conv_bias, activation=activation)
        self.d_state, self.heads = _positive("d_state", d_state), _rank("heads", heads, context.dim)
        if self.width % self.heads:
            raise ValueError(f"heads must divide the inner width {self.width}, got {self.heads}")
        self.x_proj = _uniform(DIRECTIONS, self.heads + 2 * d_state, self.width, bound=self.width**-0.5)
        self.dt_bias = nn.Parameter(0.1 * torch.rand(DIRECTIONS, self.heads))
        self.A_log = nn.Parameter(torch.zeros(DIRECTIONS, self.heads))
        self.D = nn.Parameter(torch.ones(DIRECTIONS, self.heads, self.width // self.heads))

    def scan(self, x: Tensor) -> Tensor:
        sequences = cross_scan(x)  # (B, 4, D, L)
        step, b, c = (self.x_proj @ sequences).split((self.heads, self.d_state, self.d_state), dim=2)
        # The directions are groups of heads: (B, L, 4 R, P), step (B, L, 4 R), b and c (B, L, 4, N).
        values = sequences.unflatten(2, (self.heads, -1)).flatten(1, 2).permute(0, 3, 1, 2)
        y = ssd(
            values,
            step.flatten(1, 2).transpose(1, 2),
            self.rates().flatten(),
            b.permute(0, 3, 1, 2),
            c.permute(0, 3, 1, 2),
            D=self.D.flatten(0, 1),
            dt_bias=self.dt_bias.flatten(),
            dt_softplus=True,
        )
        y = y.flatten(2).unflatten(2, (DIRECTIONS, -1)).permute(0, 2, 3, 1)
        return cross_merge(y, (x.shape[2], x.shape[3])).transpose(1, 2)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


def _rank(name: str, value: int | None, dim: int) -> int:
    return math.ceil(dim / 16) if value is None else _positive(name, value)


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
