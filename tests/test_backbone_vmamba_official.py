"""The official VMamba in our terms: the published network restated under its official names, its arguments, its files."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linescan.backbones import BACKBONES, VMamba
from linescan.backbones.checkpoints import CheckpointError, convert, load_checkpoint
from linescan.backbones.vmamba import ARCHS, PatchMerging, backbone_config, vssm_config

V05 = dict(
    ssm_d_state=1,
    ssm_conv_bias=False,
    forward_type="v05_noz",
    norm_layer="ln2d",
    downsample_version="v3",
    patchembed_version="v2",
    ssm_ratio=1.0,
)
V05_LN = {**V05, "norm_layer": "ln", "ssm_ratio": 2.0}
V0 = dict(ssm_d_state=16, forward_type="v0", mlp_ratio=0.0, downsample_version="v1", patchembed_version="v1")
M0 = {**V05_LN, "ssm_d_state": 64, "ssm_ratio": 1.0, "forward_type": "m0_noz", "ssm_act_layer": "gelu", "ssm_init": "v2"}
# Official constructor arguments of the published sizes.
PUBLISHED = {
    "tiny": dict(depths=[2, 2, 8, 2], dims=96, drop_path_rate=0.2, **V05),
    "tiny_s2l5": dict(depths=[2, 2, 5, 2], dims=96, drop_path_rate=0.2, **V05_LN),
    "small": dict(depths=[2, 2, 15, 2], dims=96, drop_path_rate=0.3, **V05_LN),
    "base": dict(depths=[2, 2, 15, 2], dims=128, drop_path_rate=0.6, **V05_LN),
    "small_s1l20": dict(depths=[2, 2, 20, 2], dims=96, **V05),
    "base_s1l20": dict(depths=[2, 2, 20, 2], dims=128, **V05),
    "tiny_v0": dict(depths=[2, 2, 9, 2], dims=96, drop_path_rate=0.2, **V0),
    "small_v0": dict(depths=[2, 2, 27, 2], dims=96, drop_path_rate=0.3, **V0),
    "base_v0": dict(depths=[2, 2, 27, 2], dims=128, drop_path_rate=0.5, **V0),
    "tiny_m0": dict(depths=[2, 2, 4, 2], dims=96, **M0),
    "small_m0": dict(depths=[2, 2, 12, 2], dims=96, **M0),
    "base_m0": dict(depths=[2, 2, 12, 2], dims=128, **M0),
}
SMALL = dict(depths=[1, 2, 1, 1], dims=16)
# What the published files' parity tests do not cover, as official constructor arguments, and the size of the image.
VARIANTS = {
    "v05_noz ln": (dict(SMALL, **V05_LN), (64, 96)),
    "v05_noz ln2d, odd": (dict(SMALL, **V05), (61, 87)),
    "v05_noz, states, rank, gelu": (dict(SMALL, **{**V05, "ssm_d_state": 3, "ssm_dt_rank": 2, "ssm_act_layer": "GELU"}), (33, 40)),
    "v0": (dict(SMALL, **{**V0, "ssm_d_state": 5}), (64, 96)),
    "v0, odd maps": (dict(SMALL, **{**V0, "ssm_d_state": 2}), (52, 76)),
    "v0, ln2d, MLP": (dict(SMALL, **{**V0, "ssm_d_state": 1, "mlp_ratio": 2.0, "norm_layer": "LN2D"}), (36, 32)),
    "v0 with a conv patch embedding": (dict(SMALL, **{**V0, "ssm_d_state": 2, "patchembed_version": "v2"}), (31, 17)),
    "m0_noz": (dict(SMALL, **{**M0, "ssm_d_state": 7}), (64, 96)),
    "m0_noz, odd, heads, silu": (dict(SMALL, **{**M0, "ssm_d_state": 4, "ssm_dt_rank": 8, "ssm_act_layer": "silu"}), (45, 38)),
    "widths, one level": (dict(V05, dims=[8, 24, 16, 40], depths=[1, 1, 1, 1], in_chans=1, out_indices=(1, 3)), (40, 33)),
}


def widths(dims: int | list[int]) -> list[int]:
    return [dims * 2**i for i in range(4)] if isinstance(dims, int) else dims


def block_shapes(c: int, options: dict) -> dict[str, tuple[int, ...]]:
    """Official key (inside a block) -> shape."""
    kind, n = options["forward_type"], options["ssm_d_state"]
    d = int(options.get("ssm_ratio", 2.0) * c)
    rank = options.get("ssm_dt_rank", "auto")
    rank = -(-c // 16) if rank == "auto" else rank
    conv = "op.conv2d.1" if kind == "m0_noz" else "op.conv2d"
    shapes = {"norm.weight": (c,), "norm.bias": (c,), "op.out_norm.weight": (d,), "op.out_norm.bias": (d,)}
    shapes |= {"op.in_proj.weight": (2 * d if kind == "v0" else d, c), "op.out_proj.weight": (c, d), f"{conv}.weight": (d, 1, 3, 3)}
    shapes |= {f"{conv}.bias": (d,)} if options.get("ssm_conv_bias", True) else {}
    shapes |= {"op.x_proj_weight": (4, rank + 2 * n, d)}
    if kind == "m0_noz":
        shapes |= {"op.A_logs": (4, rank), "op.Ds": (4, rank, d // rank), "op.dt_projs_bias": (4, rank)}
    else:
        shapes |= {"op.A_logs": (4 * d, n), "op.Ds": (4 * d,), "op.dt_projs_weight": (4, d, rank), "op.dt_projs_bias": (4, d)}
    hidden = int(options.get("mlp_ratio", 4.0) * c)
    if hidden:
        shapes |= {"norm2.weight": (c,), "norm2.bias": (c,), "mlp.fc1.weight": (hidden, c), "mlp.fc1.bias": (hidden,)}
        shapes |= {"mlp.fc2.weight": (c, hidden), "mlp.fc2.bias": (c,)}
    return shapes


def official_shapes(dims, depths, in_chans=3, out_indices=(0, 1, 2, 3), **options) -> dict[str, tuple[int, ...]]:
    """Official key of Backbone_VSSM -> shape, written from the published layout."""
    c = widths(dims)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, norm: bool = False) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    if options["patchembed_version"] == "v2":
        layer("patch_embed.0", c[0] // 2, in_chans, 3, 3)
        layer("patch_embed.2", c[0] // 2)
        layer("patch_embed.5", c[0], c[0] // 2, 3, 3)
        layer("patch_embed.7", c[0])
    else:
        layer("patch_embed.0", c[0], in_chans, 4, 4)
        layer("patch_embed.2", c[0])
    for i, depth in enumerate(depths):
        for j in range(depth):
            shapes |= {f"layers.{i}.blocks.{j}.{name}": shape for name, shape in block_shapes(c[i], options).items()}
        if i < 3 and options["downsample_version"] == "v3":
            layer(f"layers.{i}.downsample.1", c[i + 1], c[i], 3, 3)
            layer(f"layers.{i}.downsample.3", c[i + 1])
        elif i < 3:
            layer(f"layers.{i}.downsample.norm", 4 * c[i])
            shapes[f"layers.{i}.downsample.reduction.weight"] = (c[i + 1], 4 * c[i])
    for i in out_indices:
        layer(f"outnorm{i}", c[i])
    return shapes


def classifier_shapes(c: int) -> dict[str, tuple[int, ...]]:
    return {
        "classifier.norm.weight": (c,),
        "classifier.norm.bias": (c,),
        "classifier.head.weight": (1000, c),
        "classifier.head.bias": (1000,),
    }


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value * (value.shape[-1] ** -0.5 if value.ndim in (2, 3) else 0.5) for name, value in state.items()}


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """LayerNorm over the last dimension, by hand."""
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def scan_s6(u: Tensor, numbers: Tensor, state: dict[str, Tensor], name: str, k: int) -> Tensor:
    """One direction of S6, step by step: u (B, L, D), numbers (B, L, R + 2 N)."""
    d, n = u.shape[2], state[f"{name}A_logs"].shape[1]
    rate = -state[f"{name}A_logs"].view(4, d, n)[k].exp()
    step, b, c = numbers.split((numbers.shape[2] - 2 * n, n, n), -1)
    step = F.softplus(step @ state[f"{name}dt_projs_weight"][k].T + state[f"{name}dt_projs_bias"][k])
    hidden, outputs = u.new_zeros(u.shape[0], d, n), []
    for t in range(u.shape[1]):
        hidden = (step[:, t, :, None] * rate).exp() * hidden + (step[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((hidden * c[:, t, None]).sum(-1) + state[f"{name}Ds"].view(4, d)[k] * u[:, t])
    return torch.stack(outputs, 1)


def scan_ssd(u: Tensor, numbers: Tensor, state: dict[str, Tensor], name: str, k: int) -> Tensor:
    """One direction of SSD, step by step: heads of consecutive channels, a matrix state each."""
    rate = -state[f"{name}A_logs"][k].exp()
    heads = len(rate)
    n = (numbers.shape[2] - heads) // 2
    step, b, c = numbers.split((heads, n, n), -1)
    step, u = F.softplus(step + state[f"{name}dt_projs_bias"][k]), u.unflatten(2, (heads, -1))
    hidden, outputs = u.new_zeros(u.shape[0], heads, u.shape[3], n), []
    for t in range(u.shape[1]):
        decay = (step[:, t] * rate).exp()[..., None, None]
        hidden = decay * hidden + (step[:, t, :, None] * u[:, t])[..., None] * b[:, t, None, None]
        outputs.append(((hidden @ c[:, t, None, :, None]).squeeze(-1) + state[f"{name}Ds"][k] * u[:, t]).flatten(1))
    return torch.stack(outputs, 1)


def ss2d(x: Tensor, state: dict[str, Tensor], name: str, options: dict) -> Tensor:
    """The mixer on maps (B, H, W, C)."""
    kind = options["forward_type"]
    act = {"silu": F.silu, "gelu": F.gelu}[options.get("ssm_act_layer", "silu").lower()]
    conv = f"{name}conv2d.1" if kind == "m0_noz" else f"{name}conv2d"
    x = x @ state[f"{name}in_proj.weight"].T
    x, z = x.chunk(2, -1) if kind == "v0" else (x, None)
    weight = state[f"{conv}.weight"]
    x = act(F.conv2d(x.permute(0, 3, 1, 2), weight, state.get(f"{conv}.bias"), padding=1, groups=len(weight)))
    height, width = x.shape[2:]
    total = 0
    for k in range(4):
        sequence = (x.transpose(2, 3) if k % 2 else x).flatten(2).mT  # (B, L, D) by rows or by columns
        sequence = sequence.flip(1) if k >= 2 else sequence
        numbers = sequence @ state[f"{name}x_proj_weight"][k].T
        y = (scan_ssd if kind == "m0_noz" else scan_s6)(sequence, numbers, state, name, k)
        y = y.flip(1) if k >= 2 else y
        total = total + (y.unflatten(1, (width, height)).transpose(1, 2) if k % 2 else y.unflatten(1, (height, width)))
    y = norm(total, state, f"{name}out_norm")
    y = y if z is None else y * act(z)
    return y @ state[f"{name}out_proj.weight"].T


def conv(x: Tensor, state: dict[str, Tensor], name: str, stride: int, padding: int) -> Tensor:
    """A convolution of maps (B, H, W, C)."""
    y = F.conv2d(x.permute(0, 3, 1, 2), state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1)


def merge(x: Tensor) -> Tensor:
    """2x2 squares side by side, pixel by pixel: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 4 C)."""
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = x.new_zeros(x.shape[0], rows, columns, 4, x.shape[3])
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            out[:, row // 2, column // 2, row % 2 + 2 * (column % 2)] = x[:, row, column]
    return out.flatten(3)


def published_network(x: Tensor, state: dict[str, Tensor], depths, out_indices=(0, 1, 2, 3), **options) -> list[Tensor]:
    """The official Backbone_VSSM, restated."""
    x = x.permute(0, 2, 3, 1)
    if options["patchembed_version"] == "v2":
        x = F.gelu(norm(conv(x, state, "patch_embed.0", 2, 1), state, "patch_embed.2"))
        x = norm(conv(x, state, "patch_embed.5", 2, 1), state, "patch_embed.7")
    else:
        x = norm(conv(x, state, "patch_embed.0", 4, 0), state, "patch_embed.2")
    levels = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}."
            x = x + ss2d(norm(x, state, f"{name}norm"), state, f"{name}op.", options)
            if options.get("mlp_ratio", 4.0):
                y = norm(x, state, f"{name}norm2")
                y = F.gelu(y @ state[f"{name}mlp.fc1.weight"].T + state[f"{name}mlp.fc1.bias"])
                x = x + y @ state[f"{name}mlp.fc2.weight"].T + state[f"{name}mlp.fc2.bias"]
        if i in out_indices:
            levels.append(norm(x, state, f"outnorm{i}").permute(0, 3, 1, 2))
        name = f"layers.{i}.downsample"
        if i < 3 and options["downsample_version"] == "v3":
            x = norm(conv(x, state, f"{name}.1", 2, 1), state, f"{name}.3")
        elif i < 3:
            x = norm(merge(x), state, f"{name}.norm") @ state[f"{name}.reduction.weight"].T
    return levels


@pytest.mark.parametrize(("official", "size"), VARIANTS.values(), ids=VARIANTS)
def test_variants_are_the_published_network(official, size):
    """Outputs, and gradients of the image and of every parameter, in float64."""
    shapes = official_shapes(**official)
    state = random_state(shapes)
    model = BACKBONES.build(backbone_config(**official)).double().eval()
    report = load_checkpoint(model, state, family="vmamba")
    assert len(report.mapped) == len(shapes) and not report.dropped
    leaves = {name: value.requires_grad_() for name, value in state.items()}
    x = torch.randn(2, official.get("in_chans", 3), *size, dtype=torch.float64)
    options = {key: value for key, value in official.items() if key not in ("dims", "in_chans")}
    image, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, outputs = published_network(image, leaves, **options), model(twin)
    assert len(outputs) == len(expected)
    probes = [torch.randn(o.shape, dtype=torch.float64) for o in expected]
    for value, reference in zip(outputs, expected, strict=True):
        assert value.shape == reference.shape and (value - reference).norm() < 1e-11 * reference.norm()
    sum((o * p).sum() for o, p in zip(expected, probes, strict=True)).backward()
    sum((o * p).sum() for o, p in zip(outputs, probes, strict=True)).backward()
    assert (twin.grad - image.grad).norm() < 1e-10 * image.grad.norm()
    parameters = dict(model.named_parameters())
    for theirs, ours in report.mapped.items():
        reference = leaves[theirs].grad.reshape(parameters[ours].shape)
        assert (parameters[ours].grad - reference).norm() <= 1e-10 * reference.norm() + 1e-12, theirs


def test_merging_takes_columns_of_a_square_last():
    merging = PatchMerging(2, 4).double()
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    expected = F.layer_norm(merge(x.permute(0, 2, 3, 1)), (8,)) @ merging.reduction.weight.T
    assert torch.allclose(merging(x), expected.permute(0, 3, 1, 2), rtol=0, atol=1e-12)


def test_every_published_size_is_here():
    assert {*PUBLISHED, "micro"} == {arch for arch in ARCHS if not arch.startswith("test")}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_official_arguments_are_the_architectures(arch):
    config = backbone_config(**PUBLISHED[arch])
    with torch.device("meta"):
        ours, theirs = VMamba(arch), BACKBONES.build(config)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert [type(block.token.activation) for stage in ours.stages for block in stage] == [
        type(block.token.activation) for stage in theirs.stages for block in stage
    ]


@pytest.mark.parametrize("arch", PUBLISHED)
def test_published_files_map_completely(arch):
    """The layout of a published classifier, at its size: only the norms of levels are missing, only the classifier is dropped."""
    shapes = {name: shape for name, shape in official_shapes(**_layout(arch)).items() if not name.startswith("outnorm")}
    shapes |= classifier_shapes(widths(PUBLISHED[arch]["dims"])[-1])
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        model, bare = VMamba(arch), VMamba(arch, out_norm=False)
    _, report = convert(state, model, family="vmamba")
    assert sorted(report.missing) == sorted(f"outnorm.{i}.{part}" for i in range(4) for part in ("weight", "bias"))
    assert sorted(report.dropped) == sorted(classifier_shapes(1))
    assert not report.unexpected and not report.mismatched and not report.resized
    assert len(report.mapped) == len(shapes) - 4
    _, report = convert(state, bare, family="vmamba")
    assert not report.missing


def test_a_file_fits_one_architecture():
    """The tensors' shapes tell all sizes and variants apart."""
    with torch.device("meta"):
        shapes = [{name: tuple(value.shape) for name, value in VMamba(arch).state_dict().items()} for arch in PUBLISHED]
    assert all(a != b for i, a in enumerate(shapes) for b in shapes[:i])


def _layout(arch: str) -> dict:
    return {key: value for key, value in PUBLISHED[arch].items() if key not in ("drop_path_rate", "norm_layer", "ssm_init")}


FIRST_RELEASE = (
    ("patch_embed.0.", "patch_embed.proj."),
    ("patch_embed.2.", "patch_embed.norm."),
    (".norm.weight", ".ln_1.weight"),
    (".norm.bias", ".ln_1.bias"),
    (".op.", ".self_attention."),
    ("classifier.norm", "norm"),
    ("classifier.head", "head"),
)


def test_round_trip_through_a_published_file(tmp_path):
    """A classifier's file, nested under `model`, with 1x1 convolutions for linears; and the names of the first release."""
    official = dict(SMALL, **{**V0, "ssm_d_state": 2})
    state = random_state(official_shapes(**official))
    classifier = {name: value for name, value in state.items() if not name.startswith("outnorm")} | random_state(classifier_shapes(128))
    for name in list(classifier):
        if name.endswith(("in_proj.weight", "out_proj.weight", "reduction.weight")):
            classifier[name] = classifier[name][:, :, None, None]
    torch.save({"model": classifier, "epoch": 3}, tmp_path / "new.pth")
    renamed = {}
    for name, value in classifier.items():
        for new, old in FIRST_RELEASE:
            if ".blocks." in name or not new.startswith(".norm."):
                name = name.replace(new, old)
        renamed[name] = value
    assert "layers.0.blocks.0.ln_1.weight" in renamed and "layers.0.downsample.norm.weight" in renamed and "head.bias" in renamed
    torch.save({"model": renamed}, tmp_path / "old.pth")
    x = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    expected = None
    for path in (tmp_path / "new.pth", tmp_path / "old.pth"):
        model = BACKBONES.build(backbone_config(**official)).double().eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"missing: outnorm\.0\.weight"):
            load_checkpoint(model, path, family="vmamba")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        report = load_checkpoint(model, path, family="vmamba", allow_missing=["outnorm*"])
        assert len(report.dropped) == 4 and len(report.missing) == 8
        for i in range(4):
            assert torch.equal(model.outnorm[str(i)].weight, torch.ones_like(model.outnorm[str(i)].weight))
        outputs = model(x)
        expected = expected or outputs
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    raw = BACKBONES.build(vssm_config(**official)).double().eval()
    assert not load_checkpoint(raw, tmp_path / "new.pth", family="vmamba").missing
    for level, value in zip(raw(x), expected, strict=True):
        assert torch.allclose(F.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2]).permute(0, 3, 1, 2), value, rtol=0, atol=1e-10)


def test_wrong_files_are_refused():
    state = random_state(official_shapes(**SMALL, **V05))
    model = BACKBONES.build(backbone_config(**SMALL, **{**V05, "ssm_d_state": 2}))
    state["layers.0.blocks.0.op.x_proj.weight"] = state.pop("layers.0.blocks.0.op.x_proj_weight")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, state, family="vmamba")
    text = str(caught.value)
    assert "missing: stages.0.0.token.x_proj" in text and "unexpected: layers.0.blocks.0.op.x_proj.weight" in text
    assert "layers.1.blocks.0.op.A_logs has shape (128, 1), stages.1.0.token.A_log needs (128, 2)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(forward_type="v05"), "unknown forward_type 'v05'.*'v05_noz'"),
        (dict(forward_type="m0"), "unknown forward_type 'm0'"),
        (dict(norm_layer="bn"), "unknown norm_layer 'bn'"),
        (dict(downsample_version="v2"), "unknown downsample_version 'v2'"),
        (dict(patchembed_version="v3"), "unknown patchembed_version 'v3'"),
        (dict(pretrained="file.pth"), "pretrained='file.pth' has no counterpart"),
        (dict(patch_size=2), "patch_size=2 has no counterpart here; only 4"),
        (dict(ssm_conv=5), "ssm_conv=5"),
        (dict(ssm_drop_rate=0.1), "ssm_drop_rate=0.1"),
        (dict(mlp_drop_rate=0.1), "mlp_drop_rate=0.1"),
        (dict(mlp_act_layer="silu"), "mlp_act_layer='silu'"),
        (dict(gmlp=True), "gmlp=True"),
        (dict(patch_norm=False), "patch_norm=False"),
        (dict(posembed=True), "posembed=True"),
    ],
    ids=str,
)
def test_official_values_without_counterpart(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone_config(**{**SMALL, **V05, **arguments})


def test_official_defaults_are_refused_where_they_are_no_published_model():
    with pytest.raises(ValueError, match="unknown forward_type 'v2'"):
        backbone_config()
    with pytest.raises(ValueError, match="unknown downsample_version 'v2'"):
        vssm_config(forward_type="v0")
    config = backbone_config(forward_type="v0", downsample_version="v1", norm_layer="LN", use_checkpoint=True, num_classes=21, imgsize=512)
    assert config["arch"]["mixer"] == dict(type="ss2d", gate=True, d_state=16, ssm_ratio=2.0, conv_bias=True, activation="silu", rank=None)
    assert (config["drop_path_rate"], config["with_cp"], config["out_norm"], config["out_indices"]) == (0.1, True, True, (0, 1, 2, 3))
    assert backbone_config(**{**M0, "ssm_act_layer": None})["arch"]["mixer"]["activation"] == "gelu"
