"""ViTAdapter and deformable attention: sizes, plain-loop references, and what the adapter adds to a plain backbone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linescan.backbones import BACKBONES, ViTAdapter
from linescan.backbones.adapter import ARCHS, ConvFFN
from linescan.backbones.deformable import MSDeformAttn, reference_points, sample

# Parameters, in all and beside the plain backbone; the sums are the published 8.4, 29.3, 106.6 and 351.9 million.
PARAMETERS = {
    "tiny": (8_399_984, 2_438_192),
    "small": (29_264_528, 5_830_160),
    "base": (106_555_616, 13_680_608),
    "large": (351_894_720, 23_236_800),
}
PUBLISHED = dict(tiny=8.4, small=29.3, base=106.6, large=351.9)
PLAIN = {
    "vrwkv": dict(type="VRWKV", arch="test"),
    "vrwkv6": dict(type="VRWKV6", arch="test"),
    "vim": dict(type="Vim", arch="test"),
    "deit": dict(type="TimmBackbone", model_name="test"),
    "registers": dict(type="TimmBackbone", model_name="test_registers"),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(backbone: dict, **changes: object) -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter({**ARCHS["test"], "backbone": backbone, **changes}).double()


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    with torch.device("meta"):
        model = ViTAdapter(arch)
    assert (count(model), count(model) - count(model.backbone)) == PARAMETERS[arch]
    assert round(count(model) / 1e6, 1) == PUBLISHED[arch]


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """The map (D, h, w) at (x, y) in pixels, one neighbour at a time; pixels outside are zero."""
    _, height, width = image.shape
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row)) * image[:, row, column]
    return total


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (1, 1)])
def test_sampling_is_bilinear_with_zeros_outside(size):
    """Inside, on the border, across it, and far outside."""
    height, width = size
    value = random(2, 3, *size)
    anywhere = torch.rand(2, 7, 4, 2, dtype=torch.float64) * 1.6 - 0.3
    corners_and_beyond = torch.tensor([0.0, 1.0, -3.0, 9.0]).view(1, 1, 4, 1).expand(2, 1, 4, 2)
    points = torch.cat([anywhere, corners_and_beyond], dim=1) * torch.tensor([width, height])
    read = sample(value, points)
    for n in range(2):
        for q in range(8):
            for k in range(4):
                expected = bilinear(value[n], *points[n, q, k].tolist())
                assert torch.allclose(read[n, :, q, k], expected, rtol=0, atol=1e-12)


def test_sampling_has_the_right_gradients():
    """Away from the kinks of the interpolation, outside the map included."""
    value = random(2, 2, 3, 4).requires_grad_()
    points = (torch.tensor([-0.8, 0.2, 1.1, 2.7, 3.9, 4.3], dtype=torch.float64).repeat(4) + 0.05).view(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(sample, (value, points))


def test_reference_points_are_centres_in_the_image():
    expected = [(4, 4), (12, 4), (20, 4), (4, 12), (12, 12), (20, 12)]
    assert reference_points((2, 3), 8, torch.zeros(1)).tolist() == [list(map(float, point)) for point in expected]


def test_deformable_attention_is_its_formula():
    """Equation 3 of Deformable DETR, query by query, over maps of three strides, the queries on two."""
    torch.manual_seed(0)
    module = MSDeformAttn(8, 3, num_heads=2, num_points=3, ratio=0.5, query_std=0.5).double()
    token_maps, query_maps = [(4, 5, 8), (2, 3, 16), (1, 2, 32)], [(2, 3, 16), (1, 1, 32)]
    queries, tokens = random(2, 7, 8), random(2, 28, 8, seed=1)
    result = module(queries, tokens, query_maps, token_maps)
    centres = [((j + 0.5) * s, (i + 0.5) * s) for h, w, s in query_maps for i in range(h) for j in range(w)]
    for b in range(2):
        maps = [part.T.reshape(2, 2, h, w) for part, (h, w, _) in zip(module.value(tokens[b]).split([20, 6, 2]), token_maps, strict=True)]
        for q, (x, y) in enumerate(centres):
            offsets = module.offsets(queries[b, q]).view(2, 3, 3, 2)
            weights = module.weights(queries[b, q]).view(2, 9).softmax(-1).view(2, 3, 3)
            heads = []
            for head in range(2):
                read = 0
                for level, (_, _, stride) in enumerate(token_maps):
                    for k in range(3):
                        dx, dy = offsets[head, level, k].tolist()
                        read = read + weights[head, level, k] * bilinear(maps[level][head], x / stride + dx, y / stride + dy)
                heads.append(read)
            assert torch.allclose(result[b, q], module.output(torch.cat(heads)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_through_the_whole_attention(batch):
    """A batch of one has other strides."""
    torch.manual_seed(0)
    module = MSDeformAttn(4, 2, num_heads=2, num_points=2, query_std=0.3).double()
    inputs = [random(batch, 4, 4).requires_grad_(), random(batch, 5, 4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda q, t: module(q, t, [(2, 2, 16)], [(2, 2, 16), (1, 1, 32)]), inputs)


def test_deformable_attention_starts_as_published():
    module = MSDeformAttn(16, 2, num_heads=8, num_points=3)
    start = module.offsets.bias.view(8, 2, 3, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for k in range(3):
            assert torch.allclose(start[head, :, k], torch.tensor(direction, dtype=torch.float32) * (k + 1), atol=1e-6)
    for tensor in (module.offsets.weight, module.weights.weight, module.weights.bias, module.value.bias, module.output.bias):
        assert not tensor.any()
    bound = math.sqrt(6 / 32)
    assert 0.9 * bound < module.value.weight.abs().max() <= bound


def test_the_adapter_starts_as_published():
    torch.manual_seed(0)
    model = ViTAdapter("tiny")
    assert not any(injector.gamma.any() for injector in model.injectors)
    assert abs(model.level_embed.std() - 1) < 0.1
    convolutions = [
        (model.up, 4 * 192),
        *((m, m.kernel_size[0] ** 2 * m.out_channels) for m in model.prior.modules() if isinstance(m, nn.Conv2d)),
    ]
    for module, fan_out in convolutions:
        assert abs(module.weight.std() / math.sqrt(2 / fan_out) - 1) < 0.05
    ffn = model.extractors[0].ffn
    assert abs(ffn.expand.weight.std() - 0.02) < 1e-3 and abs(ffn.depthwise.weight.std() - math.sqrt(2 / 9)) < 0.05
    assert not any(module.bias.any() for module in (model.up, ffn.expand, ffn.depthwise, ffn.project, *model.prior.projections))


def test_ffn_convolves_each_map_by_itself():
    torch.manual_seed(0)
    ffn = ConvFFN(6, 4).double()
    maps = [(3, 4, 8), (2, 1, 16)]
    tokens = random(2, 14, 6)
    for part, result, (h, w, _) in zip(tokens.split([12, 2], 1), ffn(tokens, maps).split([12, 2], 1), maps, strict=True):
        image = ffn.expand(part).transpose(1, 2).reshape(2, 4, h, w)
        mixed = F.conv2d(image, ffn.depthwise.weight, ffn.depthwise.bias, padding=1, groups=4)
        assert torch.allclose(result, ffn.project(F.gelu(mixed.flatten(2).transpose(1, 2))), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_any_plain_backbone_at_any_size(name):
    model = adapter(PLAIN[name])
    assert model.out_channels == (model.backbone.dim,) * 4 and model.out_strides == (4, 8, 16, 32)
    for height, width in ((64, 64), (33, 50), (17, 1)):
        shapes = [tuple(level.shape[2:]) for level in model.eval()(random(2, 3, height, width))]
        assert shapes == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    sum((level * torch.randn_like(level)).sum() for level in model.train()(random(2, 3, 40, 70))).backward()
    assert not [parameter for parameter, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_backbone_is_not_disturbed_at_the_start(name):
    """With gamma at 0 the patches after each group are the layers' outputs; they stand in the outputs at their strides."""
    model = adapter(PLAIN[name], injector_scale=0.0, interactions=2).eval()
    x = random(2, 3, 64, 96)
    layers = model.backbone(x)
    last = [layers[group[-1]] for group in model.groups]
    seen = {}
    for i, norm in enumerate(model.norms):
        norm.register_forward_pre_hook(lambda module, args, i=i: seen.update({i: args[0]}))
    for module in model.extractors:
        nn.init.zeros_(module.attention.output.weight)
        nn.init.zeros_(module.ffn.project.weight)
    model.level_embed.data.zero_()
    model(x)
    c1, c2, c3, c4 = model.prior(x)
    up = F.conv_transpose2d(c2, model.up.weight, model.up.bias, stride=2)
    halved = last[1].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    expected = [
        c1 + up + F.interpolate(last[0], scale_factor=4, mode="bilinear"),
        c2 + F.interpolate(last[0], scale_factor=2, mode="bilinear"),
        c3 + last[0],
        c4 + halved,
    ]
    for i, value in enumerate(expected):
        assert torch.allclose(seen[i], value, rtol=0, atol=1e-10)


def test_groups_are_equal_and_exchange_in_order():
    """Injector, layers, extractor for each group; then the further extractors."""
    model = adapter(dict(type="TimmBackbone", model_name="test_registers", depth=6), interactions=3, extra_extractors=2)
    calls = []
    for kind in ("injectors", "extractors"):
        for i, module in enumerate(getattr(model, kind)):
            module.register_forward_hook(lambda *_, name=f"{kind[0]}{i}": calls.append(name))
    for i, layer in enumerate(model.backbone.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    model(random(2, 3, 64, 64))
    assert calls == ["i0", 0, 1, "e0", "i1", 2, 3, "e1", "i2", 4, 5, "e2", "e3", "e4"]


def test_prior_injection_and_extraction_are_restated():
    """One group, all parts in plain formulas: what the injector adds and what the extractor makes of the pyramid."""
    model = adapter(PLAIN["deit"], interactions=1, extra_extractors=0).eval()
    x = random(1, 3, 40, 50)
    c1, *maps = model.prior(x)
    sizes = [(5, 7, 8), (3, 4, 16), (2, 2, 32)]
    assert [tuple(m.shape[2:]) for m in maps] == [size[:2] for size in sizes] and c1.shape[2:] == (10, 13)
    c = torch.cat([m.flatten(2).transpose(1, 2) + e for m, e in zip(maps, model.level_embed, strict=True)], 1)
    tokens, grid = model.backbone.embed(x)
    (injector,), (extractor,) = model.injectors, model.extractors

    def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-6)

    patches = tokens[:, 1:]
    read = injector.attention(norm(patches, injector.query_norm), norm(c, injector.token_norm), [(*grid, 16)], sizes)
    tokens = torch.cat([tokens[:, :1], patches + injector.gamma * read], 1)
    for i in range(3):
        tokens = model.backbone.run_layer(i, tokens, grid)
    patches = model.backbone.final(tokens)[:, 1:]
    c = c + extractor.attention(norm(c, extractor.query_norm), norm(patches, extractor.token_norm), sizes, [(*grid, 16)])
    c = c + extractor.ffn(norm(c, extractor.ffn_norm), sizes)
    c2, c3, _ = c.split([35, 12, 4], 1)
    out = patches.transpose(1, 2).reshape(1, 64, 3, 4)
    upsampled = F.interpolate(out, scale_factor=2, mode="bilinear")[:, :, :5, :7]
    _, at8, at16, _ = model(x)
    assert torch.allclose(at8, model.norms[1](c2.transpose(1, 2).reshape(1, 64, 5, 7) + upsampled), rtol=0, atol=1e-10)
    assert torch.allclose(at16, model.norms[2](c3.transpose(1, 2).reshape(1, 64, 3, 4) + out), rtol=0, atol=1e-10)


def test_exports_with_sizes_left_open():
    """One graph for every batch and every image size that is a multiple of 16."""
    model = adapter(PLAIN["deit"]).eval()
    rows, columns = (16 * torch.export.Dim(name, min=2, max=256) for name in ("rows", "columns"))
    sizes = {0: torch.export.Dim("batch"), 2: rows, 3: columns}
    exported = torch.export.export(model, (random(2, 3, 64, 96),), dynamic_shapes=(sizes,), strict=False).module()
    x = random(3, 3, 80, 48)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(exported(x), model(x), strict=True))


def test_layers_keep_their_numbers_and_the_adapter_counts_as_last():
    model = adapter(PLAIN["vrwkv"])
    inner, ids = model.backbone.layer_ids(), model.layer_ids()
    assert model.num_layers == model.backbone.num_layers == 3
    for name, layer in ids.items():
        assert layer == (inner[name.removeprefix("backbone.")] if name.startswith("backbone.") else 3)


def test_arguments_reach_the_plain_backbone():
    config = dict(type="linescan.ViTAdapter", arch="test", in_channels=4, drop_path_rate=0.3, with_cp=True)
    model = BACKBONES.build(config)
    assert model.backbone.in_channels == 4 and model.backbone.with_cp
    assert model.backbone.layers[-1].drop_path.drop_prob == model.extractors[0].drop_path.drop_prob == 0.3
    own = BACKBONES.build(dict(config, backbone=dict(type="VRWKV", arch="test", drop_path_rate=0.1)))
    assert own.backbone.layers[-1].drop_path.drop_prob == 0.1
    ready = BACKBONES.build(dict(type="VRWKV", arch="test"))
    assert ViTAdapter("test", ready).backbone is ready


def test_weights_of_the_plain_backbone_load_through_its_own_config(tmp_path):
    """The file of a plain backbone with a final norm, which the one in the adapter does not have."""
    trained = BACKBONES.build(dict(type="VRWKV", arch="test", final_norm=True))
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"), allow_unexpected=("final_norm*",))
    model = ViTAdapter("test", dict(type="VRWKV", arch="test", final_norm=False, init_cfg=init))
    model.init_weights()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    assert torch.equal(model.injectors[0].gamma, torch.full((32,), 0.5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="smal"), ValueError, "unknown arch 'smal'. Did you mean 'small'"),
        (dict(arch=dict(convwidth=3)), ValueError, "unknown key of arch 'convwidth'. Did you mean 'conv_width'"),
        (dict(arch={}), TypeError, "backbone must be a plain backbone .* or its config, got NoneType"),
        (dict(arch="test", backbone=dict(type="HybridBackbone", arch="test")), TypeError, "backbone must be .*got HybridBackbone"),
        (dict(arch="test", backbone=dict(type="VRWKV", arch="test", patch_size=8)), ValueError, "expected patches 16 pixels apart, got 8"),
        (dict(arch={**ARCHS["test"], "interactions": 3}), ValueError, "interactions must be at most the 2 layers of VRWKV, got 3"),
        (dict(arch={**ARCHS["test"], "interactions": 0}), ValueError, "interactions must be a positive int, got 0"),
        (dict(arch={**ARCHS["test"], "extra_extractors": -1}), ValueError, "extra_extractors must be an int, 0 or more, got -1"),
        (dict(arch={**ARCHS["test"], "num_heads": 3}), ValueError, r"num_heads must divide the width 32 .*got 3"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ViTAdapter(**arguments)
