"""HybridBackbone: sizes, patterns, mixers, initial values and errors."""

import pytest
import torch
from torch import nn

from linescan.backbones import MIXERS, HybridBackbone, MixerSpec, register_mixer
from linescan.backbones.hybrid import ARCHS
from linescan.backbones.layers import LayerContext
from linescan.backbones.mixers import Attention
from linescan.backbones.rwkv_mixers import RWKVChannelMix, RWKVSpatialMix
from linescan.backbones.scans import resize_pos_embed
from linescan.kernels.q_shift import q_shift

LAYERS = (2, 5, 8, 11)
VARIANTS = {
    "transformer": dict(mixer="attention"),
    "rwkv": dict(mixer="bi_wkv"),
    "rwkv mlp 2": dict(mixer="bi_wkv", mlp_ratio=2),
    "rwkv_trans": dict(mixer="bi_wkv", pattern={"attention": LAYERS}),
    "mbconv_rwkv": dict(mixer="mbconv", pattern={"bi_wkv": LAYERS}),
    "rwkv_mbconv": dict(mixer="bi_wkv", pattern={"mbconv": LAYERS}),
}
# Parameters of the published code, measured, without position embedding: the whole network, and its 14 token layers; a column per variant.
PARAMETERS = {
    "tiny": (
        (5_473_760, 7_022_048, 4_957_664, 7_467_488, 5_244_128, 6_310_880),
        (5_195_904, 6_744_192, 4_679_808, 7_189_632, 4_966_272, 6_033_024),
    ),
    "small": (
        (21_791_680, 27_984_832, 19_727_296, 29_760_448, 20_742_592, 25_087_936),
        (20_713_728, 26_906_880, 18_649_344, 28_682_496, 19_664_640, 24_009_984),
    ),
    "base": (
        (86_960_000, 111_732_608, 78_702_464, 118_822_784, 82_502_528, 100_040_576),
        (82_715_136, 107_487_744, 74_457_600, 114_577_920, 78_257_664, 95_795_712),
    ),
    "large": (
        (153_783_200, 197_823_392, 139_103_136, 210_422_688, 145_742_752, 176_991_136),
        (146_987_008, 191_027_200, 132_306_944, 203_626_496, 138_946_560, 170_194_944),
    ),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(**arguments: object) -> HybridBackbone:
    torch.manual_seed(0)
    return HybridBackbone("test", **arguments)


@pytest.mark.parametrize(
    ("arch", "variant", "expected"),
    [(arch, *row) for arch, columns in PARAMETERS.items() for row in zip(VARIANTS, zip(*columns, strict=True), strict=True)],
)
def test_parameter_counts(arch, variant, expected):
    with torch.device("meta"):
        model = HybridBackbone(arch, **VARIANTS[variant])
    assert (count(model), count(model.layers)) == expected


@pytest.mark.parametrize(("size", "pixels"), [(14, 224), ((64, 64), 1024)])
def test_position_embedding_parameters(size, pixels):
    with torch.device("meta"):
        model = HybridBackbone("small", pos_embed_size=size)
    assert count(model) - PARAMETERS["small"][0][1] == (pixels // 16) ** 2 * 384


def kinds(model: HybridBackbone) -> list[str]:
    names = {spec.token: name for name, spec in MIXERS.items()}
    return [names[type(layer.token) if layer.token is not None else None] for layer in model.layers]


def test_patterns_are_plain_data():
    mixed = small(mixer="mbconv", depth=14, pattern={"bi_wkv": LAYERS, "attention": [0]})
    assert kinds(mixed) == ["attention", *("bi_wkv" if i in LAYERS else "mbconv" for i in range(1, 14))]
    listed = small(depth=3, pattern=["none", {"type": "attention"}, "bi_wkv"])
    assert kinds(listed) == ["none", "attention", "bi_wkv"]


def test_mlp_ratio_comes_from_argument_then_mixer_then_default():
    def ratios(**arguments: object) -> list[float]:
        widths = [getattr(layer.channel, "key", None) or layer.channel.gate for layer in small(depth=2, **arguments).layers]
        return [linear.out_features / linear.in_features for linear in widths]

    assert ratios(mixer="attention") == [2, 2]
    assert ratios(mixer="bi_wkv", pattern={"attention": [1]}) == [4, 4], "the main mixer's, as in the official mixed types"
    assert ratios(pattern=["bi_wkv", "attention"]) == [4, 2]
    assert ratios(mixer="bi_wkv", pattern={"attention": [1]}, mlp_ratio=2.5) == [2.5, 2.5]
    assert ratios(mlp_ratio=3, pattern=["bi_wkv", {"type": "attention", "mlp_ratio": 1}]) == [3, 1]


def test_levels():
    plain, extra = small(), small(extra_level=True)
    assert (plain.out_channels, plain.out_strides) == ((16, 32, 64, 64), (4, 8, 16, 16))
    assert (extra.out_channels, extra.out_strides) == ((16, 32, 64, 128), (4, 8, 16, 32))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_middle_level_is_after_layer_half_depth_and_not_normed(depth):
    model = small(depth=depth, mixer="attention").eval()
    seen = {}
    model.layers[depth // 2].register_forward_hook(lambda module, args, output: seen.update(middle=output))
    model.layers[-1].register_forward_hook(lambda module, args, output: seen.update(last=output))
    _, _, middle, final = model(torch.randn(1, 3, 48, 80))
    assert torch.equal(middle.flatten(2).transpose(1, 2), seen["middle"])
    assert torch.equal(final.flatten(2).transpose(1, 2), model.final_norm(seen["last"]))


def test_drop_path_rises_linearly():
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in small(depth=5, drop_path_rate=0.4).layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [getattr(layer.drop_path, "drop_prob", 0.0) for layer in small(depth=1, drop_path_rate=0.4).layers] == [0.0]


def reach(mixer: str, grid: tuple[int, int], token: int) -> set[int]:
    """Tokens of one layer's output that change when one input token does."""
    height, width = grid
    layer = small(mixer=mixer).double().eval().layers[1]
    x, other = torch.randn(2, 1, height * width, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = x.clone()
    moved[:, token] = other[:, token]
    changed = (layer(x, grid) != layer(moved, grid)).any(-1)[0]
    return set(changed.nonzero().flatten().tolist())


def test_none_mixes_no_tokens_and_the_others_do():
    everything = set(range(35))
    assert reach("none", (5, 7), 17) == {17}
    assert reach("mbconv", (5, 7), 17) == {9, 10, 11, 16, 17, 18, 23, 24, 25}
    assert reach("bi_wkv", (5, 7), 17) == everything
    assert reach("attention", (5, 7), 17) == everything


def test_none_is_the_rwkv_layer_on_one_token_sequences():
    """With the mixes at one, the RWKV layer on a 1 x 1 grid computes what `none` computes."""
    control, rwkv = small(mixer="none").layers[0], small(mixer="bi_wkv").layers[0]
    rwkv.load_state_dict(control.state_dict(), strict=False)
    for module in (rwkv.token, rwkv.channel):
        for name in ("mix_k", "mix_v", "mix_r"):
            if hasattr(module, name):
                nn.init.ones_(getattr(module, name))
    tokens = torch.randn(35, 1, 64)
    expected = control(tokens.view(1, 35, 64), (5, 7))
    assert torch.allclose(rwkv(tokens, (1, 1)).view(1, 35, 64), expected, atol=1e-6)


def test_q_shift_and_initial_values_are_the_official_ones(golden_ops):
    golden = torch.load(golden_ops / "qshift_inits.pt", weights_only=True)
    assert torch.equal(q_shift(golden["qshift_in"], tuple(golden["qshift_hw"].tolist())), golden["qshift_out"])
    for key, expected in golden["inits"].items():
        dim, depth, index = map(int, key.split("_"))
        context = LayerContext(dim, index, depth, num_heads=1, mlp_ratio=1)
        parts = {"att": RWKVSpatialMix(context), "ffn": RWKVChannelMix(context)}
        for name, value in expected.items():
            part, parameter = name.split(".")
            ours = getattr(parts[part], parameter.removeprefix("spatial_"))
            assert torch.allclose(ours, value.flatten(), rtol=1e-6, atol=1e-6), f"{key} {name}"


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (6, 1), (3, 5)])
def test_q_shift_moves_each_quarter(grid):
    height, width = grid
    x = torch.arange(1.0, height * width * 18 + 1).view(1, height * width, 18)
    out = q_shift(x, grid).view(height, width, 18)
    source = x.view(height, width, 18)
    for y in range(height):
        for xx in range(width):
            for c in range(18):
                dy, dx = (0, -1) if c < 4 else (0, 1) if c < 9 else (-1, 0) if c < 13 else (1, 0)
                inside = 0 <= y + dy < height and 0 <= xx + dx < width
                assert out[y, xx, c] == (source[y + dy, xx + dx, c] if inside else 0)


def test_initial_values():
    model = small(depth=1, pos_embed_size=8, extra_level=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.25)
            assert not module.bias.any()
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx((1 / (3 * module.in_features)) ** 0.5, rel=0.1)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.layers[0].scale1, torch.full((64,), 1e-2))
    assert small(mixer="attention").layers[0].scale1 is None


def test_init_weights_keeps_the_initial_values():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_weight_decay():
    model = small(pos_embed_size=4)
    assert model.no_weight_decay() == {"pos_embed"}
    assert small().no_weight_decay() == set()
    layer = model.layers[0]
    assert layer.no_weight_decay() == {"scale1", "scale2"}
    assert layer.token.no_weight_decay() == {"decay", "first", "mix_k", "mix_v", "mix_r"}
    assert layer.channel.no_weight_decay() == {"mix_k", "mix_r"}
    assert small(mixer="attention").layers[0].no_weight_decay() == set()
    assert small(mixer="mbconv").layers[0].no_weight_decay() == set()


def test_position_embedding_resizes_to_any_grid():
    model = small(pos_embed_size=(3, 5)).eval()
    assert model(torch.randn(1, 3, 48, 80))[3].shape == (1, 64, 3, 5)
    assert model(torch.randn(1, 3, 100, 33))[3].shape == (1, 64, 7, 3)
    embed = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    assert resize_pos_embed(embed, (3, 5)) is embed
    expected = nn.functional.interpolate(embed, (7, 4), mode="bicubic", align_corners=False)
    assert torch.equal(resize_pos_embed(embed, (7, 4)), expected)
    half = embed.bfloat16()
    assert torch.equal(resize_pos_embed(half, (7, 4)), nn.functional.interpolate(half.float(), (7, 4), mode="bicubic").bfloat16())


def test_transposed_grid_is_not_mistaken():
    """The position embedding is resized where the grids differ as a pair, also where their sizes agree."""
    model = small(pos_embed_size=(3, 5), depth=1).eval()
    x = torch.randn(1, 3, 80, 48)
    with_embedding = model(x)[3]
    nn.init.zeros_(model.pos_embed)
    assert model.pos_embed.shape[2:] == (3, 5) and not torch.allclose(model(x)[3], with_embedding)


def test_export_with_dynamic_size():
    """One exported graph for all sizes that are multiples of 16 (other sizes: average pooling guards on their parity in PyTorch)."""
    model = small(depth=1, pos_embed_size=5).eval()
    sizes = {2: 16 * torch.export.Dim("rows", min=3, max=64), 3: 16 * torch.export.Dim("columns", min=3, max=64)}
    exported = torch.export.export(model, (torch.randn(1, 3, 64, 96),), dynamic_shapes={"x": sizes}).module()
    x = torch.randn(1, 3, 128, 80)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(exported(x), model(x), strict=True))


class Mean(nn.Module):
    """A third party's mixer: the mean of all tokens, times a gain."""

    def __init__(self, context: LayerContext, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.gain * x.mean(1, keepdim=True).expand_as(x)


@pytest.fixture
def mean_mixer():
    register_mixer("mean", MixerSpec(Mean, "geglu", layer_scale=None, mlp_ratio=1))
    yield "mean"
    del MIXERS["mean"]


def test_third_party_mixer(mean_mixer):
    model = small(mixer=dict(type=mean_mixer, gain=2.0, layer_scale=0.5, channel_mixer="rwkv"), pattern={"mean": [1]})
    first, second = model.layers[0], model.layers[1]
    assert (first.token.gain, second.token.gain) == (2.0, 1.0)
    assert isinstance(first.channel, RWKVChannelMix) and bool((first.scale1 == 0.5).all()) and second.scale1 is None
    assert model(torch.randn(1, 3, 33, 33))[3].shape == (1, 64, 3, 3)
    with pytest.raises(ValueError, match="already registered"):
        register_mixer("mean", MIXERS["mean"])
    with pytest.raises(ValueError, match=r"channel mixer 'geglo'.*'geglu'"):
        register_mixer("other", MixerSpec(Attention, "geglo", None, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="tinny"), ValueError, "unknown arch 'tinny'.*'tiny'"),
        (dict(mixer="bi_wvk"), ValueError, "unknown mixer 'bi_wvk'.*'bi_wkv'"),
        (dict(mixer=3), TypeError, "mixer must be a name or dict"),
        (dict(mixer={"gain": 1}), ValueError, "'type'"),
        (dict(mixer={"type": "mbconv", "gain": 1}), ValueError, "gain"),
        (dict(mixer={"type": "attention", "channel_mixer": "mlp"}), ValueError, "unknown channel mixer 'mlp'"),
        (dict(pattern={"attention": (2, 4)}), ValueError, "layer 4.*0..3"),
        (dict(pattern={"attention": (2,), "none": (2,)}), ValueError, "layer 2 twice"),
        (dict(pattern={"attentoin": (2,)}), ValueError, "'attention'"),
        (dict(pattern={"attention": 2}), TypeError, "sequence of layer indices"),
        (dict(pattern="attention"), TypeError, "pattern must be"),
        (dict(pattern=["attention"]), ValueError, "expected 4, got 1"),
        (dict(mixer="attention", num_heads=5), ValueError, "num_heads must divide the token width 64, got 5"),
        (dict(num_heads=0), ValueError, "num_heads"),
        (dict(depth=0), ValueError, "depth"),
        (dict(mlp_ratio=0), ValueError, "mlp_ratio"),
        (dict(mlp_ratio="4"), ValueError, "mlp_ratio"),
        (dict(drop_path_rate=1.0), ValueError, "drop_path_rate"),
        (dict(pos_embed_size=(3,)), ValueError, "pos_embed_size"),
        (dict(pos_embed_size=0), ValueError, "pos_embed_size"),
        (dict(in_channels=0), ValueError, "in_channels"),
        (dict(arch={"stem_width": 8, "dim": (8, 8, 8)}), ValueError, "unknown key of arch 'dim'.*'dims'"),
        (dict(arch={"stem_width": 8}), ValueError, "needs dims"),
        (dict(arch={"stem_width": 8, "dims": (8, 16)}), ValueError, "three positive dims"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        HybridBackbone(**{"arch": "test", **arguments})


def test_arch_may_be_a_dict():
    model = HybridBackbone(dict(stem_width=8, dims=(8, 16, 24), conv_depths=(1, 2), depth=2, num_heads=3), mixer="attention", in_channels=1)
    assert model.out_channels == (8, 16, 24, 24)
    assert model(torch.randn(1, 1, 20, 20))[3].shape == (1, 24, 2, 2)
    assert set(ARCHS) == {"test", "tiny", "small", "base", "large"}
