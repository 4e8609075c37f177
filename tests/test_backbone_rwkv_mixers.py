"""The mixer `bi_wkv6`: its heads, its options, its decays in half precision. Its formula is tested with VRWKV6."""

import copy

import pytest
import torch

from linescan.backbones import HybridBackbone, rwkv_mixers
from linescan.backbones.layers import LayerContext


def test_decays_are_summed_in_float32(monkeypatch):
    """The data-dependent part, about 2e-3 at first, would vanish beside -6 in bfloat16."""
    seen = []
    monkeypatch.setattr(rwkv_mixers, "bi_wkv6", lambda r, k, v, w, u: seen.append(w) or v)
    half = rwkv_mixers.RWKV6SpatialMix(LayerContext(64, 1, 3, 1, 4)).bfloat16()
    torch.nn.init.constant_(half.decay, -6)
    exact = copy.deepcopy(half).double()
    x = torch.randn(2, 64, 64).bfloat16()
    half(x, (8, 8)), exact(x.double(), (8, 8))
    assert [w.dtype for w in seen] == [torch.float32, torch.float64]
    assert (seen[0] - seen[1]).norm() < 2e-2 * (seen[1] + 6).norm()


@pytest.mark.parametrize(
    ("dim", "num_heads", "options", "heads"),
    [
        (192, 6, {}, 3),
        (64, 4, {}, 1),
        (48, 6, {}, 6),
        (192, 6, {"head_dim": 32}, 6),
        (48, 5, {"head_dim": 24}, 2),
    ],
)
def test_heads_of_the_mixer(dim, num_heads, options, heads):
    mix = rwkv_mixers.RWKV6SpatialMix(LayerContext(dim, 0, 2, num_heads, 4), **options)
    assert mix.heads == mix.head_norm.num_groups == heads and mix.first.shape == (heads, dim // heads)


def test_mixer_in_the_hybrid_network():
    mixer = dict(type="bi_wkv6", head_dim=16, key_norm=True, mix_rank=4, decay_rank=8)
    model = HybridBackbone("test", mixer, pattern={"bi_wkv": (0,)})
    token = model.layers[1].token
    assert (token.heads, token.shift_down.shape, token.decay_up.shape) == (4, (64, 20), (8, 64))
    assert token.key_norm is not None and model.layers[1].channel.heads == 1
    assert torch.equal(model.layers[1].scale1, torch.full((64,), 1e-2))
    for arch, heads in {"tiny": 3, "small": 6, "base": 12, "large": 16}.items():
        with torch.device("meta"):
            assert {layer.token.heads for layer in HybridBackbone(arch, "bi_wkv6", depth=2).layers} == {heads}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_dim=48), "head_dim must divide the token width 64, got 48"),
        (dict(head_dim=0), "head_dim must divide the token width 64, got 0"),
        (dict(arch=dict(stem_width=8, dims=(8, 16, 30), num_heads=4)), "num_heads must divide the token width 30, got 4"),
    ],
)
def test_mixer_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        HybridBackbone(options.pop("arch", "test"), dict(type="bi_wkv6", **options))
