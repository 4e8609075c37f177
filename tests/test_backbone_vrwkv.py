"""VRWKV: the published formula restated with plain PyTorch, parameter counts, official checkpoints, initial values, bad arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linescan.backbones import BACKBONES, VRWKV
from linescan.backbones.checkpoints import CheckpointError, convert, load_checkpoint
from linescan.backbones.vrwkv import ARCHS, vrwkv_config

# Backbone without head; with the published classifier: Linear(C, 1000), of large Linear(C, 3072)-Tanh-Linear(3072, 1000).
PARAMETERS = {"tiny": (5_962_176, 6.155), "small": (23_435_136, 23.82), "base": (92_876_544, 93.65), "large": (328_659_968, 334.88)}
# Official constructor arguments of the published sizes.
PUBLISHED = {
    "tiny": dict(embed_dims=192),
    "small": dict(embed_dims=384, post_norm=True, init_values=1),
    "base": dict(embed_dims=768, post_norm=True, init_values=1e-5),
    "large": dict(embed_dims=1024, depth=24, post_norm=True, init_values=1e-5, key_norm=True, img_size=192),
}
# What the published files' parity tests do not cover, as official constructor arguments, and the size of the image.
VARIANTS = {
    "norm before, scales": (dict(init_values=0.5), (64, 96)),
    "norm after, no scales": (dict(post_norm=True), (64, 96)),
    "norm after, key norm": (dict(post_norm=True, key_norm=True, init_values=0.1), (64, 96)),
    "norm before, key norm": (dict(key_norm=True), (33, 70)),
    "other image, odd": (dict(init_values=1e-5, post_norm=True, hidden_rate=2), (55, 81)),
    "narrow image, no final norm": (dict(final_norm=False), (17, 1)),
    "patches of 8, odd table": (dict(patch_size=8, img_size=(30, 41), in_channels=1), (30, 41)),
    "widths that 4 does not divide": (dict(embed_dims=18), (48, 48)),
}
SMALL = dict(embed_dims=24, depth=3, img_size=(64, 96), out_indices=(0, 1, 2))


def head_shapes(dim: int, large: bool) -> dict[str, tuple[int, ...]]:
    layers = {"fc0": (dim, 3072), "fc1": (3072, 1000)} if large else {"fc": (dim, 1000)}
    return {f"head.{name}.{part}": (o, i) if part == "weight" else (o,) for name, (i, o) in layers.items() for part in ("weight", "bias")}


def official_shapes(embed_dims, depth=12, img_size=224, patch_size=16, in_channels=3, hidden_rate=4, **options):
    """Official key -> shape, written from the published layout."""
    c, hidden = embed_dims, embed_dims * hidden_rate
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    shapes = {
        "pos_embed": (1, -(-height // patch_size) * -(-width // patch_size), c),
        "patch_embed.projection.weight": (c, in_channels, patch_size, patch_size),
        "patch_embed.projection.bias": (c,),
    }
    if options.get("final_norm", True):
        shapes |= {"ln1.weight": (c,), "ln1.bias": (c,)}
    for i in range(depth):
        layer = {f"{ln}.{part}": (c,) for ln in ("ln1", "ln2", *(["ln0"] if i == 0 else [])) for part in ("weight", "bias")}
        layer |= {"att.spatial_decay": (c,), "att.spatial_first": (c,)}
        layer |= {f"att.spatial_mix_{m}": (1, 1, c) for m in "kvr"} | {f"ffn.spatial_mix_{m}": (1, 1, c) for m in "kr"}
        layer |= {f"att.{linear}.weight": (c, c) for linear in ("key", "value", "receptance", "output")}
        layer |= {"ffn.key.weight": (hidden, c), "ffn.receptance.weight": (c, c), "ffn.value.weight": (c, hidden)}
        if options.get("key_norm"):
            layer |= {f"{part}.key_norm.{p}": (n,) for part, n in (("att", c), ("ffn", hidden)) for p in ("weight", "bias")}
        if options.get("init_values") is not None:
            layer |= {"gamma1": (c,), "gamma2": (c,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5 for name, shape in shapes.items()}


def shifted(x, grid):
    """Quarters of the channels of x (B, T, C) from the left, the right, above and below, zero outside the grid."""
    (b, t, c), (h, w) = x.shape, grid
    x = x.view(b, h, w, c)
    out = torch.zeros_like(x)
    a, m, z = int(c / 4), int(c / 2), int(c * 3 / 4)
    out[:, :, 1:, :a] = x[:, :, : w - 1, :a]
    out[:, :, : w - 1, a:m] = x[:, :, 1:, a:m]
    out[:, 1:, :, m:z] = x[:, : h - 1, :, m:z]
    out[:, : h - 1, :, z:] = x[:, 1:, :, z:]
    return out.view(b, t, c)


def wkv(w, u, k, v):
    """The sum over all pairs of tokens, one query after the other."""
    out = []
    positions = torch.arange(k.shape[1])
    for t in range(k.shape[1]):
        exponent = k - ((positions - t).abs()[:, None] - 1) * w
        exponent = torch.where((positions == t)[:, None], k + u, exponent)
        weight = exponent.exp()
        out.append((weight * v).sum(1) / weight.sum(1))
    return torch.stack(out, 1)


def published_forward(state, x, *, embed_dims, depth, img_size, patch_size=16, post_norm=False, key_norm=False, final_norm=True, **_):
    """Maps after every layer, from an official state dict."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def mixed(x, grid, name):
        mu = state[name]
        return x * mu + shifted(x, grid) * (1 - mu)

    def attend(x, at):
        k = mixed(x, grid, f"{at}.spatial_mix_k") @ state[f"{at}.key.weight"].T
        v = mixed(x, grid, f"{at}.spatial_mix_v") @ state[f"{at}.value.weight"].T
        r = mixed(x, grid, f"{at}.spatial_mix_r") @ state[f"{at}.receptance.weight"].T
        y = wkv(state[f"{at}.spatial_decay"] / x.shape[1], state[f"{at}.spatial_first"] / x.shape[1], k, v)
        y = norm(y, f"{at}.key_norm") if key_norm else y
        return (r.sigmoid() * y) @ state[f"{at}.output.weight"].T

    def feed(x, at):
        k = (mixed(x, grid, f"{at}.spatial_mix_k") @ state[f"{at}.key.weight"].T).clamp(min=0) ** 2
        k = norm(k, f"{at}.key_norm") if key_norm else k
        r = mixed(x, grid, f"{at}.spatial_mix_r") @ state[f"{at}.receptance.weight"].T
        return r.sigmoid() * (k @ state[f"{at}.value.weight"].T)

    height, width = x.shape[2:]
    grid = -(-height // patch_size), -(-width // patch_size)
    padded = x.new_zeros(*x.shape[:2], grid[0] * patch_size, grid[1] * patch_size)
    padded[:, :, :height, :width] = x
    patches = F.conv2d(padded, state["patch_embed.projection.weight"], state["patch_embed.projection.bias"], stride=patch_size)
    table = state["pos_embed"].transpose(1, 2).reshape(1, embed_dims, *(-(-n // patch_size) for n in img_size))
    x = (patches + F.interpolate(table, grid, mode="bicubic", align_corners=False)).flatten(2).transpose(1, 2)
    maps = []
    for i in range(depth):
        at = f"layers.{i}"
        g1, g2 = state.get(f"{at}.gamma1", 1), state.get(f"{at}.gamma2", 1)
        x = norm(x, f"{at}.ln0") if i == 0 else x
        if post_norm:
            x = x + g1 * norm(attend(x, f"{at}.att"), f"{at}.ln1")
            x = x + g2 * norm(feed(x, f"{at}.ffn"), f"{at}.ln2")
        else:
            x = x + g1 * attend(norm(x, f"{at}.ln1"), f"{at}.att")
            x = x + g2 * feed(norm(x, f"{at}.ln2"), f"{at}.ffn")
        out = norm(x, "ln1") if i == depth - 1 and final_norm else x
        maps.append(out.transpose(1, 2).reshape(len(x), embed_dims, *grid))
    return maps


def error(value, reference):
    assert value.shape == reference.shape
    return ((value.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_formula_with_gradients(variant):
    options, size = VARIANTS[variant]
    official = {**SMALL, **options}
    state = random_state(official_shapes(**official))
    model = BACKBONES.build(vrwkv_config(**official)).double()
    report = load_checkpoint(model, state, family="vrwkv")
    assert len(report.mapped) == len(state) and not report.dropped
    for value in state.values():
        value.requires_grad_()
    x = torch.randn(2, official.get("in_channels", 3), *size, dtype=torch.float64, requires_grad=True)
    expected, maps = published_forward(state, x, **official), model(x)
    probes = [torch.randn_like(m) for m in maps]
    for value, reference in zip(maps, expected, strict=True):
        assert error(value, reference) < 1e-10
    wanted = torch.autograd.grad(sum((m * p).sum() for m, p in zip(expected, probes, strict=True)), [x, *state.values()])
    inner = torch.autograd.grad(sum((m * p).sum() for m, p in zip(maps, probes, strict=True)), [x, *model.parameters()])
    assert error(inner[0], wanted[0]) < 1e-10
    ours = dict(zip((name for name, _ in model.named_parameters()), inner[1:], strict=True))
    gradients, _ = convert(dict(zip(state, wanted[1:], strict=True)), model, family="vrwkv")
    assert gradients.keys() == ours.keys()
    for name, reference in gradients.items():
        assert (ours[name] - reference).abs().max() <= 1e-10 * (1 + reference.norm()), name


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    """The published figures count the classifier."""
    with torch.device("meta"):
        count = sum(p.numel() for p in VRWKV(arch).parameters())
        head = sum(torch.empty(shape).numel() for shape in head_shapes(PUBLISHED[arch]["embed_dims"], arch == "large").values())
    exact, published = PARAMETERS[arch]
    assert count == exact
    assert round((count + head) / 1e6, 3 if arch == "tiny" else 2) == published


def test_large_at_384_pixels():
    with torch.device("meta"):
        count = sum(p.numel() for p in VRWKV("large", img_size=384).parameters())
    assert count == PARAMETERS["large"][0] + (24**2 - 12**2) * 1024
    assert round((count + 1024 * 3072 + 3072 + 3072 * 1000 + 1000) / 1e6, 2) == 335.32


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("img_size", [None, (512, 384)])
def test_published_files_fit(arch, img_size):
    """A classifier's file in the official layout, shapes only: every key is mapped, the head dropped, the position embedding resized."""
    shapes = official_shapes(**PUBLISHED[arch])
    head = head_shapes(PUBLISHED[arch]["embed_dims"], arch == "large")
    with torch.device("meta"):
        state = {f"backbone.{name}": torch.empty(shape) for name, shape in shapes.items()}
        state |= {name: torch.empty(shape) for name, shape in head.items()}
        model = VRWKV(arch, img_size=img_size)
        inside = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
        converted, report = convert(inside, model, family="vrwkv")
        assert not report.missing and not report.unexpected and not report.mismatched
        assert {**report.mapped, **report.resized}.keys() == shapes.keys()
        assert {name: value.shape for name, value in converted.items()} == {name: p.shape for name, p in model.named_parameters()}
        assert set(report.resized) == ({"pos_embed"} if img_size else set())
        assert set(convert(head, model, family="vrwkv")[1].dropped) == set(head)


def test_published_architectures_are_the_official_arguments():
    for arch, official in PUBLISHED.items():
        with torch.device("meta"):
            named, translated = VRWKV(arch, out_indices=(official.get("depth", 12) - 1,)), BACKBONES.build(vrwkv_config(**official))
        assert repr(named) == repr(translated) and named.out_indices == translated.out_indices
        assert [layer.post_norm for layer in named.layers] == [layer.post_norm for layer in translated.layers]
        assert {n: p.shape for n, p in named.named_parameters()} == {n: p.shape for n, p in translated.named_parameters()}
        assert ARCHS[arch].get("layer_scale", False) == vrwkv_config(**official)["layer_scale"]


def test_file_of_a_classifier_loads_through_init_cfg(tmp_path):
    official = {**SMALL, "post_norm": True, "init_values": 1e-5}
    state = random_state(official_shapes(**official))
    path = tmp_path / "published.pth"
    content = {f"backbone.{name}": value for name, value in state.items()} | random_state(head_shapes(24, large=False))
    torch.save({"meta": {"epoch": 300}, "state_dict": content}, path)
    config = vrwkv_config(**official)
    pretrained = dict(type="Pretrained", checkpoint=str(path), family="vrwkv")
    model = BACKBONES.build({**config, "init_cfg": pretrained}).double()
    model.init_weights()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    assert all(error(value, reference) < 1e-10 for value, reference in zip(model(x), published_forward(state, x, **official), strict=True))


def test_files_that_do_not_fit_are_refused_with_a_list():
    state = random_state(official_shapes(**SMALL))
    scaled = VRWKV(dict(dim=24, depth=3), layer_scale=1.0, img_size=(64, 96))
    before = {name: value.clone() for name, value in scaled.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"6 missing, 0 unexpected\n  missing: layers.0.scale1"):
        load_checkpoint(scaled, state, family="vrwkv")
    assert all(torch.equal(value, before[name]) for name, value in scaled.state_dict().items())
    report = load_checkpoint(scaled, state, family="vrwkv", allow_missing=("layers.*.scale?",))
    assert len(report.missing) == 6 and bool((scaled.layers[2].scale2 == 1).all())
    with pytest.raises(CheckpointError, match=r"unexpected: layers\.0\.att\.time_maa_x"):
        load_checkpoint(VRWKV(dict(dim=24, depth=3)), {**state, "layers.0.att.time_maa_x": torch.zeros(1, 1, 24)}, family="vrwkv")
    with pytest.raises(CheckpointError, match=r"unexpected: layers\.2\.ffn"):
        load_checkpoint(VRWKV(dict(dim=24, depth=2)), state, family="vrwkv")
    with pytest.raises(CheckpointError, match=r"wrong shape: ln1.weight has shape \(24,\), final_norm.weight needs \(32,\)"):
        load_checkpoint(VRWKV(dict(dim=32, depth=3)), state, family="vrwkv")


def test_mixes_and_decays_start_at_the_published_values(golden_ops):
    inits = torch.load(golden_ops / "qshift_inits.pt", weights_only=True)["inits"]
    models = {}
    for key, expected in inits.items():
        dim, depth, index = map(int, key.split("_"))
        if (dim, depth) not in models:
            models[dim, depth] = VRWKV(dict(dim=dim, depth=depth, mlp_ratio=1))
        layer = models[dim, depth].layers[index]
        ours, _ = convert({f"layers.{index}.{name}": value for name, value in expected.items()}, models[dim, depth], family="vrwkv")
        assert len(ours) == len(expected) == 7
        for name, value in ours.items():
            assert torch.allclose(layer.get_parameter(name.split(".", 2)[2]), value, rtol=1e-6, atol=1e-6), f"{key} {name}"


def test_initial_values():
    model = VRWKV("test_post_norm")
    assert not model.pos_embed.any() and model.pos_embed.shape == (1, 32, 3, 4)
    assert all(torch.equal(getattr(layer, name), torch.full((32,), 0.1)) for layer in model.layers for name in ("scale1", "scale2"))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= module.in_features**-0.5 and module.weight.std() > 0.5 * module.in_features**-0.5
        if isinstance(module, nn.LayerNorm):
            assert bool((module.weight == 1).all()) and not module.bias.any() and module.eps == 1e-5
    recipe = VRWKV(dict(dim=64), init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02))
    decay = recipe.layers[3].token.decay.clone()
    recipe.init_weights()
    assert recipe.layers[3].token.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(recipe.layers[3].token.decay, decay)


def test_training_arguments():
    model = VRWKV("test", drop_path_rate=0.4, layer_scale=0.5)
    assert [getattr(layer.drop_path, "drop_prob", 0.0) for layer in model.layers] == [0.0, 0.4]
    assert model.no_weight_decay() == {"pos_embed"} and model.layers[0].no_weight_decay() == {"scale1", "scale2"}
    assert VRWKV("test").layers[0].no_weight_decay() == set()
    ids = model.layer_ids()
    assert {ids[name] for name in ("patch_embed.weight", "pos_embed")} == {0}
    assert ids["layers.0.norm0.weight"] == ids["layers.0.token.decay"] == 1 and ids["layers.1.scale2"] == 2


def test_zero_padding_is_the_images_own():
    model = VRWKV("test").eval()
    x = torch.randn(2, 3, 35, 50)
    assert all(torch.equal(a, b) for a, b in zip(model(x), model(F.pad(x, (0, 14, 0, 13))), strict=True))


def test_arguments_replace_the_architectures():
    model = VRWKV("test_post_norm", post_norm=False, key_norm=False, layer_scale=False, img_size=(20, 100))
    layer = model.layers[1]
    assert not layer.post_norm and layer.token.key_norm is None and layer.channel.key_norm is None and layer.scale1 is None
    assert model.pos_embed.shape == (1, 32, 2, 7)
    one = VRWKV(dict(dim=6, depth=1, mlp_ratio=1.5), patch_size=4, in_channels=2, out_indices=(0,))
    assert one(torch.randn(1, 2, 9, 4))[0].shape == (1, 6, 3, 1)
    assert (one.out_channels, one.out_strides, one.layers[0].channel.key.out_features) == ((6,), (4,), 9)


def test_official_arguments():
    config = vrwkv_config(embed_dims=64, depth=6, out_indices=[5, 1, -2], hidden_rate=3, drop_path_rate=0.2, with_cp=True)
    model = BACKBONES.build(config)
    assert model.out_indices == (1, 4, 5) and model.with_cp and model.layers[5].drop_path.drop_prob == pytest.approx(0.2)
    assert model.layers[0].channel.key.out_features == 192
    assert BACKBONES.build(vrwkv_config(depth=2)).out_indices == (1,)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("drop_rate", 0.1),
        ("channel_gamma", 1 / 6),
        ("shift_pixel", 0),
        ("shift_mode", "q_shift_multihead"),
        ("init_mode", "local"),
        ("interpolate_mode", "bilinear"),
        ("init_cfg", {}),
    ],
)
def test_official_arguments_without_counterpart(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}=.*no counterpart"):
        vrwkv_config(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        (dict(arch="tinny"), ValueError, "unknown arch 'tinny'.*'tiny'"),
        (dict(arch={"dims": 8}), ValueError, "unknown key of arch 'dims'.*'dim'"),
        (dict(arch={"depth": 2}), ValueError, "needs dim"),
        (dict(arch={"dim": 0}), ValueError, "dim must be a positive int, got 0"),
        (dict(arch={"dim": 8, "depth": True}), ValueError, "depth must be a positive int, got True"),
        (dict(arch={"dim": 8, "mlp_ratio": 0}), ValueError, "mlp_ratio must be a positive number, got 0"),
        (dict(arch={"dim": 8, "layer_scale": True}), TypeError, "layer_scale must be a number, or False"),
        (dict(layer_scale="1"), TypeError, "layer_scale must be a number, or False for none, got '1'"),
        (dict(post_norm="yes"), TypeError, "post_norm must be True or False, got 'yes'"),
        (dict(key_norm=1), TypeError, "key_norm must be True or False, got 1"),
        (dict(img_size=0), ValueError, r"img_size must be \(h, w\), two positive ints"),
        (dict(img_size=(3, 4, 5)), ValueError, "img_size must be"),
        (dict(img_size="64"), ValueError, "img_size must be"),
        (dict(patch_size=0), ValueError, "patch_size must be a positive int, got 0"),
        (dict(drop_path_rate=1.0), ValueError, "drop_path_rate"),
        (dict(in_channels=0), ValueError, "in_channels"),
        (dict(out_indices=(2,)), ValueError, "out_indices"),
        (dict(frozen_stages=3), ValueError, "frozen_stages"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(arguments, exception, message):
    with pytest.raises(exception, match=message):
        VRWKV(**{"arch": "test", **arguments})
