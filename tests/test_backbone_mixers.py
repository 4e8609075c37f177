"""Token mixers: sizes in every architecture from closed forms, how far each sees, and the formulas of those that have no operator."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.mambaout import GatedConvBlock
from torch import nn

from linescan.backbones import MIXERS, HybridBackbone
from linescan.backbones.hybrid import ARCHS
from linescan.backbones.layers import LayerContext
from linescan.backbones.mixers import GatedConv, LinearAttention

SIZES = [arch for arch in ARCHS if not arch.startswith("test")]


def ss2d(c: int) -> int:
    """Inner width 2C, one state, rank ceil(C / 16): projections, 3x3 depthwise conv, norm, and per direction x, dt, bias, A, D."""
    d, r = 2 * c, math.ceil(c / 16)
    return 2 * c * d + 9 * d + 2 * d + 4 * (d * (r + 2) + d * r + 3 * d)


def ssd(c: int) -> int:
    """Inner width C, 64 states, ceil(C / 16) heads: per direction x, bias and A per head, D per channel."""
    heads = math.ceil(c / 16)
    return 2 * c * c + 9 * c + 2 * c + 4 * (c * (heads + 128) + 2 * heads + c)


def gated_conv(c: int) -> int:
    h = int(4 / 3 * c)
    return 2 * h * (c + 1) + 50 * c + (h + 1) * c


# Parameters of the token mixer for width C.
TOKEN = {
    "bi_wkv": lambda c: 4 * c * c + 5 * c,
    "bi_wkv6": lambda c: 5 * c * c + 8 * c + 2 * c + 2 * c * (160 + 64),
    "attention": lambda c: 4 * c * c + 4 * c,
    "linear_attention": lambda c: 4 * c * c + 4 * c,
    "gated_conv": gated_conv,
    "ss2d": ss2d,
    "ssd": ssd,
    "none": lambda c: 3 * c * c,
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def context(dim: int, **more: int) -> LayerContext:
    return LayerContext(dim=dim, index=1, depth=4, **{"num_heads": 4, "mlp_ratio": 2, **more})


def test_every_mixer_has_a_closed_form():
    assert set(TOKEN) == set(MIXERS) - {"mbconv"}, "mbconv is no token mixer of its own; its sizes stand in test_backbone_hybrid.py"


@pytest.mark.parametrize("arch", SIZES)
@pytest.mark.parametrize("mixer", TOKEN)
def test_sizes(arch, mixer):
    """The token mixer has its closed form, and with one channel mixer the networks differ by nothing else."""
    options = dict(channel_mixer="geglu", layer_scale=None)
    with torch.device("meta"):
        model, twin = (HybridBackbone(arch, dict(type=name, **options), mlp_ratio=2) for name in (mixer, "attention"))
    dim, depth = ARCHS[arch]["dims"][-1], len(model.layers)
    assert count(model.layers[0].token) == TOKEN[mixer](dim)
    assert count(model) - count(twin) == depth * (TOKEN[mixer](dim) - TOKEN["attention"](dim))


@pytest.mark.parametrize("name", TOKEN)
def test_how_far_a_mixer_sees(name):
    """Tokens in one row, 40 wide: the last ones' influence on the first. A gated convolution sees 3 neighbours, the control none."""
    torch.manual_seed(0)
    mixer = MIXERS[name].token(context(64)).double()
    x = torch.randn(1, 40, 64, dtype=torch.float64, requires_grad=True)
    (mixer(x, (1, 40))[0, 0] * torch.randn(64)).sum().backward()
    seen = x.grad[0].norm(dim=-1) > 0
    reach = int(seen.nonzero().max())
    assert reach == {"gated_conv": 3, "none": 0}.get(name, 39)


def test_linear_attention_is_its_quadratic_form():
    torch.manual_seed(0)
    mixer = LinearAttention(context(32)).double()
    q, k, v = torch.randn(3, 2, 4, 37, 8, dtype=torch.float64)
    weights = torch.einsum("bhtd,bhsd->bhts", F.elu(3 * q) + 1, F.elu(3 * k) + 1)
    expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
    assert torch.allclose(mixer.mix(3 * q, 3 * k, v), expected, rtol=1e-12, atol=1e-12)


def test_linear_attention_knows_no_order():
    torch.manual_seed(0)
    mixer = LinearAttention(context(32)).double()
    x, order = torch.randn(1, 35, 32, dtype=torch.float64), torch.randperm(35)
    assert torch.allclose(mixer(x, (5, 7))[:, order], mixer(x[:, order], (5, 7)), rtol=1e-12, atol=1e-12)


def test_linear_attention_sums_in_float32_under_half_precision():
    """65536 equal tokens: a running sum in bfloat16 stops growing at 256."""
    mixer = LinearAttention(context(8, num_heads=1))
    v = torch.ones(1, 1, 65536, 8, dtype=torch.bfloat16)
    y = mixer.mix(v, v, v)
    assert y.dtype == torch.bfloat16 and torch.equal(y, torch.ones_like(y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixer.mix(v, v, v), y)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_gated_conv_is_mambaouts(kernel_size):
    """With its width 8/3 C the mixer is timm's block without the norm and the residual."""
    torch.manual_seed(0)
    theirs = GatedConvBlock(24, expansion_ratio=8 / 3, kernel_size=kernel_size, norm_layer=nn.Identity).double()
    ours = GatedConv(context(24), kernel_size=kernel_size, expand=8 / 3).double()
    for mine, other in ((ours.up, theirs.fc1), (ours.conv, theirs.conv), (ours.down, theirs.fc2)):
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 5, 9, 24, dtype=torch.float64)
    assert torch.allclose(ours(x.flatten(1, 2), (5, 9)), (theirs(x) - x).flatten(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(kernel_size=4), "kernel_size must be an odd"), (dict(kernel_size="7"), "kernel_size"), (dict(expand=0.5), "expand must be")],
)
def test_gated_conv_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        HybridBackbone("test", dict(type="gated_conv", **options))
