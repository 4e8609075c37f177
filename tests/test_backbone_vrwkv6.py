"""VRWKV6: the published formula in plain loops, class token, counts, official checkpoints, large images."""

import pytest
import torch
import torch.nn.functional as F

from linescan.backbones import BACKBONES, VRWKV6
from linescan.backbones.checkpoints import CheckpointError, convert, load_checkpoint
from linescan.backbones.vrwkv6 import ARCHS, vrwkv6_config

# Backbone without head; with the published classifier Linear(C, 1000), in millions.
PARAMETERS = {"tiny": (7_448_256, 7.64), "small": (27_292_032, 27.68), "base": (104_129_280, 104.90)}
# Official constructor arguments of the published sizes.
PUBLISHED = {
    "tiny": dict(embed_dims=192, num_heads=3),
    "small": dict(embed_dims=384, num_heads=6, post_norm=True, init_values=1e-5),
    "base": dict(embed_dims=768, num_heads=12, post_norm=True, init_values=1e-5),
}
# What the published files' parity tests do not cover, as official constructor arguments, and the size of the image.
VARIANTS = {
    "class token": (dict(with_cls_token=True), (32, 48)),
    "class token, output": (dict(with_cls_token=True, output_cls_token=True, post_norm=True, init_values=0.5), (48, 32)),
    "norm after, no scales": (dict(post_norm=True), (32, 48)),
    "norm after, key norm": (dict(post_norm=True, key_norm=True, init_values=0.1), (32, 48)),
    "norm before, key norm, class token": (dict(key_norm=True, with_cls_token=True, init_values=1.0), (33, 70)),
    "other image, odd": (dict(hidden_rate=2, init_values=1e-5), (55, 41)),
    "one token, no final norm": (dict(final_norm=False), (9, 16)),
    "narrow heads that 4 does not divide": (dict(embed_dims=36, num_heads=6, patch_size=8, img_size=(20, 30)), (20, 30)),
}
SMALL = dict(embed_dims=128, num_heads=2, depth=2, img_size=(32, 48), out_indices=(0, 1))


def official_shapes(embed_dims, num_heads, depth=12, img_size=224, patch_size=16, hidden_rate=4, **options):
    """Official key -> shape, written from the published layout."""
    c, hidden = embed_dims, embed_dims * hidden_rate
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    shapes = {
        "pos_embed": (1, -(-height // patch_size) * -(-width // patch_size), c),
        "patch_embed.projection.weight": (c, 3, patch_size, patch_size),
        "patch_embed.projection.bias": (c,),
    }
    if options.get("with_cls_token"):
        shapes["cls_token"] = (1, 1, c)
    if options.get("final_norm", True):
        shapes |= {"ln1.weight": (c,), "ln1.bias": (c,)}
    for i in range(depth):
        layer = {f"{ln}.{part}": (c,) for ln in ("ln1", "ln2", *(["ln0"] if i == 0 else [])) for part in ("weight", "bias")}
        layer |= {f"att.time_maa_{m}": (1, 1, c) for m in "xwkvrg"}
        layer |= {"att.time_maa_w1": (c, 160), "att.time_maa_w2": (5, 32, c), "att.time_decay": (1, 1, c)}
        layer |= {"att.time_decay_w1": (c, 64), "att.time_decay_w2": (64, c), "att.time_faaaa": (num_heads, c // num_heads)}
        layer |= {f"att.{linear}.weight": (c, c) for linear in ("receptance", "key", "value", "gate", "output")}
        layer |= {"att.ln_x.weight": (c,), "att.ln_x.bias": (c,), "ffn.spatial_mix_k": (1, 1, c), "ffn.spatial_mix_r": (1, 1, c)}
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


def shifted(x, grid, heads):
    """In every head, quarters of its channels from the left, the right, above and below, zero outside; other tokens stay."""
    (b, _, c), (h, w) = x.shape, grid
    patches = x[:, : h * w].reshape(b, h, w, heads, c // heads)
    out = torch.zeros_like(patches)
    a, m, z = int(c // heads / 4), int(c // heads / 2), int(c // heads / 4 * 3)
    out[:, :, 1:, :, :a] = patches[:, :, : w - 1, :, :a]
    out[:, :, : w - 1, :, a:m] = patches[:, :, 1:, :, a:m]
    out[:, 1:, :, :, m:z] = patches[:, : h - 1, :, :, m:z]
    out[:, : h - 1, :, :, z:] = patches[:, 1:, :, :, z:]
    return torch.cat((out.reshape(b, h * w, c), x[:, h * w :]), 1)


def wkv6(r, k, v, decay, u):
    """(B, T, H, D) each, u (H, D): the pairs (query t, key i), with the decays strictly between them."""
    out = []
    for t in range(r.shape[1]):
        y = torch.einsum("bhi,hi,bhi,bhj->bhj", r[:, t], u, k[:, t], v[:, t])
        for i in range(r.shape[1]):
            if i != t:
                between = decay[:, min(i, t) + 1 : max(i, t)].prod(1)
                y = y + torch.einsum("bhi,bhi,bhi,bhj->bhj", r[:, t], between, k[:, i], v[:, i])
        out.append(y)
    return torch.stack(out, 1)


def published_forward(state, x, *, embed_dims, num_heads, depth, img_size, patch_size=16, post_norm=False, key_norm=False, **options):
    """[(map, class token or None)] after every layer, from an official state dict."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def attend(x, at):
        b, t, c = x.shape
        step = shifted(x, grid, num_heads) - x
        low = torch.tanh((x + step * state[f"{at}.time_maa_x"]) @ state[f"{at}.time_maa_w1"]).view(b * t, 5, 32).transpose(0, 1)
        offsets = torch.bmm(low, state[f"{at}.time_maa_w2"]).view(5, b, t, c)
        m = {name: x + step * (state[f"{at}.time_maa_{name}"] + offset) for name, offset in zip("wkvrg", offsets, strict=True)}
        w = state[f"{at}.time_decay"] + torch.tanh(m["w"] @ state[f"{at}.time_decay_w1"]) @ state[f"{at}.time_decay_w2"]
        linear = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
        p = {name: m[name] @ state[f"{at}.{full}.weight"].T for name, full in linear.items()}
        r, k, v, decay = (z.view(b, t, num_heads, -1) for z in (p["r"], p["k"], p["v"], torch.exp(-torch.exp(w))))
        y = wkv6(r, k, v, decay, state[f"{at}.time_faaaa"]).reshape(b, t, c)
        y = norm(y, f"{at}.key_norm") if key_norm else y
        heads = y.view(b, t, num_heads, -1)
        heads = (heads - heads.mean(-1, keepdim=True)) / (heads.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = heads.reshape(b, t, c) * state[f"{at}.ln_x.weight"] + state[f"{at}.ln_x.bias"]
        return (y * p["g"] * p["g"].sigmoid()) @ state[f"{at}.output.weight"].T

    def feed(x, at):
        neighbour = shifted(x, grid, num_heads)
        x_k, x_r = (x * state[f"{at}.spatial_mix_{m}"] + neighbour * (1 - state[f"{at}.spatial_mix_{m}"]) for m in "kr")
        k = (x_k @ state[f"{at}.key.weight"].T).clamp(min=0) ** 2
        k = norm(k, f"{at}.key_norm") if key_norm else k
        return (x_r @ state[f"{at}.receptance.weight"].T).sigmoid() * (k @ state[f"{at}.value.weight"].T)

    height, width = x.shape[2:]
    grid = -(-height // patch_size), -(-width // patch_size)
    padded = x.new_zeros(*x.shape[:2], grid[0] * patch_size, grid[1] * patch_size)
    padded[:, :, :height, :width] = x
    patches = F.conv2d(padded, state["patch_embed.projection.weight"], state["patch_embed.projection.bias"], stride=patch_size)
    table = state["pos_embed"].transpose(1, 2).reshape(1, embed_dims, *(-(-n // patch_size) for n in img_size))
    x = (patches + F.interpolate(table, grid, mode="bicubic", align_corners=False)).flatten(2).transpose(1, 2)
    if "cls_token" in state:
        x = torch.cat((x, state["cls_token"].expand(len(x), -1, -1)), 1)
    outputs = []
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
        out = norm(x, "ln1") if i == depth - 1 and options.get("final_norm", True) else x
        patches, others = out[:, : grid[0] * grid[1]], out[:, grid[0] * grid[1] :]
        outputs.append((patches.transpose(1, 2).reshape(len(x), embed_dims, *grid), others[:, 0] if "cls_token" in state else None))
    return outputs


def error(value, reference):
    assert value.shape == reference.shape
    return ((value.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_formula_with_gradients(variant):
    options, size = VARIANTS[variant]
    official = {**SMALL, **options}
    state = random_state(official_shapes(**official))
    model = BACKBONES.build(vrwkv6_config(**official)).double()
    report = load_checkpoint(model, state, family="vrwkv6")
    assert len(report.mapped) == len(state) and not report.dropped
    for value in state.values():
        value.requires_grad_()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected, maps = published_forward(state, x, **official), model(x)
    probes = [torch.randn_like(m) for m in maps]
    for value, (reference, _) in zip(maps, expected, strict=True):
        assert error(value, reference) < 1e-10
    parameters = dict(model.named_parameters())
    total = sum((m * p).sum() for (m, _), p in zip(expected, probes, strict=True))
    wanted = torch.autograd.grad(total, [x, *state.values()], materialize_grads=True)  # one token has no decay
    inner = torch.autograd.grad(sum((m * p).sum() for m, p in zip(maps, probes, strict=True)), [x, *parameters.values()])
    assert error(inner[0], wanted[0]) < 1e-10
    ours = dict(zip(parameters, inner[1:], strict=True))
    gradients, _ = convert(dict(zip(state, wanted[1:], strict=True)), model, family="vrwkv6")
    assert gradients.keys() == ours.keys()
    for name, reference in gradients.items():
        assert (ours[name] - reference).abs().max() <= 1e-10 * (1 + reference.norm()), name


def test_class_token_comes_beside_the_maps():
    official = {**SMALL, "with_cls_token": True, "output_cls_token": True}
    state = random_state(official_shapes(**official))
    model = BACKBONES.build(vrwkv6_config(**official)).double()
    load_checkpoint(model, state, family="vrwkv6")
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    pairs = model.forward_with_token(x)
    for (features, token), (reference, reference_token), plain in zip(
        pairs, published_forward(state, x, **official), model(x), strict=True
    ):
        assert torch.equal(features, plain)
        assert error(features, reference) < 1e-10 and error(token, reference_token) < 1e-10
    last = VRWKV6("test_class_token", out_indices=(1,))
    assert [tuple(part.shape) for part in last.forward_with_token(torch.randn(2, 3, 20, 20))[0]] == [(2, 64, 2, 2), (2, 64)]
    with pytest.raises(ValueError, match="class_token=True"):
        VRWKV6("test").forward_with_token(torch.randn(1, 3, 16, 16))


def test_class_token_in_steps():
    """The steps that other networks take one by one keep the class token behind the patches."""
    model = VRWKV6("test_class_token").eval()
    x = torch.randn(2, 3, 40, 60)
    tokens, grid = model.embed(x)
    before, patches, after = model.split_tokens(tokens, grid)
    assert (grid, before.shape[1], patches.shape[1], after.shape[1]) == ((3, 4), 0, 12, 1)
    assert torch.equal(model.join_tokens(before, patches, after), tokens)
    for i in range(2):
        tokens = model.run_layer(i, tokens, grid)
    assert torch.equal(model.to_map(model.final(tokens), grid), model(x)[-1])


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    """The published figures count the classifier."""
    with torch.device("meta"):
        count = sum(p.numel() for p in VRWKV6(arch).parameters())
    exact, published = PARAMETERS[arch]
    assert count == exact
    assert round((count + PUBLISHED[arch]["embed_dims"] * 1000 + 1000) / 1e6, 2) == published


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("img_size", [None, (512, 384)])
def test_published_files_fit(arch, img_size):
    """A classifier's file in the official layout, shapes only: every key is mapped, the head dropped, the position embedding resized."""
    shapes = official_shapes(**PUBLISHED[arch])
    with torch.device("meta"):
        model = VRWKV6(arch, img_size=img_size)
        state = {name: torch.empty(shape) for name, shape in shapes.items()} | {"head.fc.weight": torch.empty(1000, model.dim)}
        converted, report = convert(state, model, family="vrwkv6")
    assert not report.missing and not report.unexpected and not report.mismatched and report.dropped == ["head.fc.weight"]
    assert {**report.mapped, **report.resized}.keys() == shapes.keys()
    assert {name: value.shape for name, value in converted.items()} == {name: p.shape for name, p in model.named_parameters()}
    assert set(report.resized) == ({"pos_embed"} if img_size else set())


def test_published_architectures_are_the_official_arguments():
    for arch, official in PUBLISHED.items():
        with torch.device("meta"):
            named, translated = VRWKV6(arch, out_indices=(11,)), BACKBONES.build(vrwkv6_config(**official))
        assert repr(named) == repr(translated) and named.out_indices == translated.out_indices
        assert [layer.post_norm for layer in named.layers] == [layer.post_norm for layer in translated.layers]
        assert {n: p.shape for n, p in named.named_parameters()} == {n: p.shape for n, p in translated.named_parameters()}
        assert ARCHS[arch].get("layer_scale", False) == vrwkv6_config(**official)["layer_scale"]
        heads = {(m.heads, m.extra_tokens) for layer in named.layers for m in (layer.token, layer.channel)}
        assert heads == {(official["num_heads"], 0)}


def test_file_of_a_classifier_loads_through_init_cfg(tmp_path):
    official = {**SMALL, "post_norm": True, "init_values": 1e-5}
    state = random_state(official_shapes(**official))
    path = tmp_path / "published.pth"
    content = {f"backbone.{name}": value for name, value in state.items()} | {"head.fc.bias": torch.zeros(1000)}
    torch.save({"meta": {"epoch": 300}, "state_dict": content}, path)
    pretrained = dict(type="Pretrained", checkpoint=str(path), family="vrwkv6")
    model = BACKBONES.build({**vrwkv6_config(**official), "init_cfg": pretrained}).double()
    model.init_weights()
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    for value, (reference, _) in zip(model(x), published_forward(state, x, **official), strict=True):
        assert error(value, reference) < 1e-10


def test_files_that_do_not_fit_are_refused_with_a_list():
    state = random_state(official_shapes(**{**SMALL, "with_cls_token": True}))
    model = VRWKV6(dict(dim=128, depth=2), img_size=(32, 48))
    with pytest.raises(CheckpointError, match=r"1 unexpected\n  unexpected: cls_token"):
        load_checkpoint(model, state, family="vrwkv6")
    del state["cls_token"], state["layers.1.att.time_maa_w2"]
    with pytest.raises(CheckpointError, match=r"1 missing, 0 unexpected\n  missing: layers\.1\.token\.shift_up"):
        load_checkpoint(model, state, family="vrwkv6")
    with pytest.raises(CheckpointError, match=r"unexpected: layers\.0\.att\.time_maa_x"):
        load_checkpoint(model, state, family="vrwkv")


@pytest.mark.parametrize(("dim", "depth", "index"), [(64, 3, 0), (64, 3, 1), (128, 4, 3), (64, 1, 0)])
def test_initial_values(dim, depth, index):
    layer = VRWKV6(dict(dim=dim, depth=depth)).layers[index]
    token = layer.token
    rise, fall = (index / (depth - 1) if depth > 1 else 0), 1 - index / depth
    for h in range(dim):
        place, ramp, root = h / (dim - 1), (h / dim) ** fall, (h / dim) ** (fall / 2)
        expected = dict(
            decay=-6 + 5 * place ** (0.7 + 1.3 * rise),
            shift_x=1 - ramp,
            shift_w=1 - ramp,
            shift_k=1 - ramp,
            shift_v=1 - (ramp + 0.3 * rise),
            shift_r=1 - root,
            shift_g=1 - root,
        )
        for name, value in expected.items():
            assert getattr(token, name)[h].item() == pytest.approx(value, abs=1e-6), (name, h)
        assert token.first[h // 64, h % 64].item() == pytest.approx(rise * (1 - place) + 0.1 * ((h + 1) % 3 - 1), abs=1e-6)
        assert layer.channel.mix_k[h].item() == layer.channel.mix_r[h].item() == pytest.approx(ramp, abs=1e-6)
    for factor in (token.shift_down, token.shift_up, token.decay_down, token.decay_up):
        assert 0.9e-4 < factor.max() <= 1e-4 and -1e-4 <= factor.min() < -0.9e-4 and abs(factor.mean()) < 5e-6


def test_initial_class_token_trains():
    model = VRWKV6("test_class_token")
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.no_weight_decay() == {"pos_embed", "cls_token"} and VRWKV6("test").no_weight_decay() == {"pos_embed"}
    assert model.layer_ids()["cls_token"] == 0


@pytest.mark.parametrize("size", [(512, 512), (528, 1000)])
def test_trains_on_large_images(size):
    """More tokens than 256, where the official backward pass ends; the gradient of the image reaches its far corner."""
    model = VRWKV6(dict(dim=16, depth=2, num_heads=2), class_token=True)
    x = torch.randn(1, 3, *size, requires_grad=True)
    final = model(x)[-1]
    assert final.shape == (1, 16, -(-size[0] // 16), -(-size[1] // 16))
    final[:, :, 0, 0].square().sum().backward()
    gradients = [x.grad[:, :, -16:, -16:], *(p.grad for p in model.parameters())]
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


def test_official_arguments():
    config = vrwkv6_config(embed_dims=64, num_heads=1, depth=4, out_indices=[3, -3], hidden_rate=3, drop_path_rate=0.2, key_norm=True)
    model = BACKBONES.build(config)
    assert model.out_indices == (1, 3) and model.layers[3].drop_path.drop_prob == pytest.approx(0.2)
    assert model.layers[0].channel.key.out_features == 192 and model.layers[0].token.heads == 1
    default = BACKBONES.build(vrwkv6_config())
    assert (default.dim, len(default.layers), default.layers[0].token.heads, default.out_indices) == (192, 12, 3, (11,))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("drop_rate", 0.1),
        ("shift_pixel", 0),
        ("shift_mode", "q_shift"),
        ("init_mode", "global"),
        ("interpolate_mode", "bilinear"),
        ("init_cfg", {}),
        ("output_cls_token", True),
    ],
)
def test_official_arguments_without_counterpart(argument, value):
    with pytest.raises(ValueError, match=argument):
        vrwkv6_config(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        (dict(arch="huge"), ValueError, "unknown arch 'huge'"),
        (dict(arch={"dim": 64, "heads": 2}), ValueError, "unknown key of arch 'heads'.*'num_heads'"),
        (dict(arch={"dim": 48}), ValueError, "num_heads is needed where 64 does not divide the width 48"),
        (dict(num_heads=3), ValueError, "num_heads must be a positive int that divides the width 64, got 3"),
        (dict(num_heads=0), ValueError, "num_heads must be a positive int"),
        (dict(class_token="yes"), TypeError, "class_token must be True or False, got 'yes'"),
        (dict(layer_scale=True), TypeError, "layer_scale must be a number"),
        (dict(img_size=(64,)), ValueError, "img_size must be"),
        (dict(drop_path_rate=-0.1), ValueError, "drop_path_rate"),
        (dict(frozen_stages=3), ValueError, "frozen_stages"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(arguments, exception, message):
    with pytest.raises(exception, match=message):
        VRWKV6(**{"arch": "test", **arguments})
