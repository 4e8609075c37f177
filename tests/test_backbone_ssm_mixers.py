"""The cross-scan mixers: against the closed form of their scans, both implementations against each other, initial values, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linescan.backbones import MIXERS, HybridBackbone
from linescan.backbones.layers import LayerContext
from linescan.backbones.ssm_mixers import SS2D, SSD2D

CONTEXT = LayerContext(dim=32, index=0, depth=1, num_heads=1, mlp_ratio=4)
GRIDS = [(1, 1), (1, 6), (5, 1), (4, 4), (3, 7)]
SS2D_OPTIONS = {
    "v05_noz": dict(),
    "v05_noz ratio 1": dict(ssm_ratio=1),
    "v0": dict(d_state=16, gate=True, conv_bias=True),
    "gelu, rank": dict(d_state=3, ssm_ratio=1.5, gate=True, activation="gelu", rank=5),
}
SSD_OPTIONS = {
    "m0_noz": dict(),
    "heads, gate": dict(d_state=5, ssm_ratio=1.5, heads=6, gate=True, conv_bias=True, activation="silu"),
}


def build(kind: type, **options: object) -> nn.Module:
    """A mixer in float64 with every parameter moved away from its initial value."""
    torch.manual_seed(0)
    mixer = kind(CONTEXT, **options).double()
    for parameter in mixer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return mixer


def tokens(grid: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, grid[0] * grid[1], CONTEXT.dim, dtype=torch.float64)


def paths(grid: tuple[int, int]) -> list[list[int]]:
    """Pixel (row-major number) of every step, by direction."""
    height, width = grid
    rows = [y * width + x for y in range(height) for x in range(width)]
    columns = [y * width + x for x in range(width) for y in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def weights(step: Tensor, rate: Tensor) -> Tensor:
    """(B, L, D) and (D, N) -> exp(A (dt_{s+1} + ... + dt_t)) for s <= t, else 0, as (B, t, s, D, N)."""
    total = step.cumsum(1)
    gap = total[:, :, None] - total[:, None]
    mask = torch.ones(step.shape[1], step.shape[1], dtype=torch.bool).tril()
    return (gap[..., None] * rate).exp() * mask[:, :, None, None]


def closed_form(mixer: nn.Module, x: Tensor, grid: tuple[int, int], activation: str) -> Tensor:
    """The mixer with every scan as one sum over all pairs of tokens: y_t = sum_{s <= t} C_t exp(A sum dt) dt_s B_s x_s + D x_t."""
    act = {"gelu": F.gelu, "silu": F.silu}[activation]
    projected = x @ mixer.in_proj.weight.T
    width = mixer.out_proj.weight.shape[1]
    x, z = projected[..., :width], projected[..., width:]
    image = x.mT.reshape(x.shape[0], width, *grid)
    x = act(F.conv2d(image, mixer.conv.weight, mixer.conv.bias, padding=1, groups=width)).flatten(2).mT
    total = torch.zeros_like(x)
    for k, path in enumerate(paths(grid)):
        u = x[:, path]
        numbers = u @ mixer.x_proj[k].T
        rank = mixer.x_proj.shape[1] - 2 * mixer.d_state
        step, b, c = numbers[..., :rank], numbers[..., rank : rank + mixer.d_state], numbers[..., rank + mixer.d_state :]
        if isinstance(mixer, SS2D):
            step = F.softplus(step @ mixer.dt_proj[k].T + mixer.dt_bias[k])
            rate = -mixer.A_log.view(4, width, -1)[k].exp()
            skip = mixer.D.view(4, width)[k]
        else:
            step = F.softplus(step + mixer.dt_bias[k]).repeat_interleave(width // rank, -1)
            rate = -mixer.A_log[k].exp().repeat_interleave(width // rank)[:, None].expand(-1, mixer.d_state)
            skip = mixer.D[k].flatten()
        y = torch.einsum("btsdn,btn,bsn,bsd->btd", weights(step, rate), c, b, step * u) + skip * u
        total = total.index_add(1, torch.tensor(path), y)
    y = F.layer_norm(total, (width,), mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)
    if mixer.in_proj.weight.shape[0] == 2 * width:
        y = y * act(z)
    return y @ mixer.out_proj.weight.T


def gradients(output: Tensor, x: Tensor, mixer: nn.Module) -> list[Tensor]:
    probe = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    return list(torch.autograd.grad((output * probe).sum(), (x, *mixer.parameters()), materialize_grads=True))


def error(value: Tensor, reference: Tensor) -> float:
    value, reference = value.detach(), reference.detach()
    return float((value.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30))


CASES = [pytest.param(SS2D, {**o, "fused": f}, id=f"ss2d {n} {f}") for n, o in SS2D_OPTIONS.items() for f in (False, True)]
CASES += [pytest.param(SSD2D, options, id=f"ssd {name}") for name, options in SSD_OPTIONS.items()]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_values_and_gradients_are_those_of_the_closed_form(kind, options, grid):
    mixer, x = build(kind, **options), tokens(grid).requires_grad_()
    activation = options.get("activation", "silu" if kind is SS2D else "gelu")
    output, expected = mixer(x, grid), closed_form(mixer, x, grid, activation)
    assert error(output, expected) < 1e-12
    for value, reference in zip(gradients(output, x, mixer), gradients(expected, x, mixer), strict=True):
        assert value.shape == reference.shape and (value - reference).norm() <= 1e-10 * reference.norm() + 1e-13


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_fused_and_composed_scans_agree(dtype, tolerance):
    """On a CPU the default is the composition; the fused operator gives the same values and gradients in every dtype."""
    mixer, grid = build(SS2D, d_state=4, gate=True).to(dtype), (9, 14)
    x = tokens(grid).to(dtype).requires_grad_()
    results = []
    for fused in (False, True, None):
        mixer.fused = fused
        output = mixer(x, grid)
        results.append((output, *gradients(output, x, mixer)))
    composed, fused, default = results
    assert all(torch.equal(a, b) for a, b in zip(composed, default, strict=True))
    for a, b in zip(fused, composed, strict=True):
        assert a.dtype == dtype and error(a, b) < tolerance


@pytest.mark.parametrize("kind", [SS2D, SSD2D])
def test_decays_stay_exact_in_half_precision(kind):
    mixer = build(kind).bfloat16()
    assert mixer.rates().dtype == torch.float32 and build(kind).rates().dtype == torch.float64
    assert torch.equal(mixer.rates(), -mixer.A_log.float().exp())


@pytest.mark.parametrize("name", ["ss2d", "ssd"])
def test_mixers_are_layers_of_the_hybrid(name):
    """The transformer's layer, the token mixer exchanged; options reach the constructor."""
    spec, attention = MIXERS[name], MIXERS["attention"]
    assert (spec.channel, spec.layer_scale, spec.mlp_ratio) == (attention.channel, attention.layer_scale, attention.mlp_ratio)
    model = HybridBackbone("test", dict(type=name, d_state=3, ssm_ratio=0.5))
    assert all(layer.token.d_state == 3 and layer.token.width == 32 for layer in model.layers)


def test_initial_values():
    context = LayerContext(dim=256, index=0, depth=1, num_heads=1, mlp_ratio=4)
    s6, ssd = SS2D(context, d_state=16), SSD2D(context)
    assert torch.allclose(s6.rates(), -torch.arange(1.0, 17).expand(4 * 512, 16)) and torch.equal(
        SS2D(context).rates(), -torch.ones(2048, 1)
    )
    steps = F.softplus(s6.dt_bias)
    assert s6.dt_bias.shape == (4, 512) and 1e-3 * 0.999 < steps.min() < 1.1e-3 and 0.09 < steps.max() < 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx(torch.tensor(1e-2).log().item(), abs=0.15), "log-uniform"
    assert torch.equal(s6.D, torch.ones(2048)) and s6.D.ndim == 1
    for value, shape, bound in (
        (s6.dt_proj, (4, 512, 16), 16**-0.5),
        (s6.x_proj, (4, 16 + 32, 512), 512**-0.5),
        (ssd.x_proj, (4, 16 + 128, 256), 256**-0.5),
    ):
        assert value.shape == shape and 0.99 * bound < value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(ssd.rates(), -torch.ones(4, 16)) and torch.equal(ssd.D, torch.ones(4, 16, 16))
    assert ssd.dt_bias.min() >= 0 and 0.08 < ssd.dt_bias.max() <= 0.1 and ssd.dt_bias.shape == (4, 16)
    for mixer in (s6, ssd):
        assert mixer.no_weight_decay() == {"A_log", "D", "dt_bias"}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SS2D, dict(d_state=0), "d_state must be a positive int, got 0"),
        (SSD2D, dict(d_state=2.0), "d_state must be a positive int, got 2.0"),
        (SS2D, dict(rank=0), "rank must be a positive int, got 0"),
        (SSD2D, dict(heads=5), "heads must divide the inner width 32, got 5"),
        (SSD2D, dict(heads=True), "heads must be a positive int, got True"),
        (SS2D, dict(ssm_ratio=0), "ssm_ratio must be a positive number, got 0"),
        (SS2D, dict(ssm_ratio="2"), "ssm_ratio must be a positive number, got '2'"),
        (SSD2D, dict(activation="relu"), "unknown activation 'relu'.*gelu, silu"),
    ],
)
def test_errors_name_the_argument(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(CONTEXT, **options)
