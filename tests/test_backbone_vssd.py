"""VSSD: sizes, published checkpoints, the formulas written out, batch norm, initial values and errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from linescan.backbones import VSSD
from linescan.backbones.checkpoints import FAMILIES, CheckpointError, convert, load_checkpoint
from linescan.backbones.layers import to_map, to_tokens
from linescan.backbones.vssd import NCSSD, backbone_config, classifier_config
from linescan.kernels.ssd import ssd

# Published sizes: C, N, depths, heads, and millions of parameters of the classifier: a LayerNorm and 1000 classes, no norms of levels.
PUBLISHED = {
    "micro": (48, 48, (2, 2, 8, 4), (2, 4, 8, 16), 13.513),
    "tiny": (64, 64, (2, 4, 8, 4), (2, 4, 8, 16), 24.271),
    "small": (64, 64, (3, 4, 21, 5), (2, 4, 8, 16), 40.076),
    "base": (96, 64, (3, 4, 21, 5), (3, 6, 12, 24), 88.823),
}
SMALL = (8, 4, (1, 1, 2, 1), (1, 2, 2, 4))


def model_of(arch: str | dict = "test", **arguments: object) -> VSSD:
    torch.manual_seed(0)
    return VSSD(arch, **arguments)


def batch_norm(prefix: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{key}": (dim,) for key in ("weight", "bias", "running_mean", "running_var")} | {f"{prefix}.num_batches_tracked": ()}


def layer(prefix: str, *shape: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": shape} | ({f"{prefix}.bias": shape[:1]} if bias else {})


def official_shapes(
    dim: int, d_state: int, depths: tuple[int, ...], heads: tuple[int, ...], *, classifier: bool = False
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of an official file: a backbone with norms of its levels, or a classifier without them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in {
        "conv1": (dim // 2, 3, 3, 3),
        "conv2.0": (dim // 2, dim // 2, 3, 3),
        "conv2.1": (dim // 2, dim // 2, 3, 3),
        "conv3.0": (4 * dim, dim // 2, 3, 3),
        "conv3.1": (dim, 4 * dim, 1, 1),
    }.items():
        shapes |= layer(f"patch_embed.{name}.conv", *shape, bias=False) | batch_norm(f"patch_embed.{name}.norm", shape[0])
    for i, depth in enumerate(depths):
        c = dim * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            shapes |= layer(block + "cpe1", c, 1, 3, 3) | layer(block + "cpe2", c, 1, 3, 3)
            shapes |= layer(block + "norm1", c) | layer(block + "norm2", c)
            shapes |= layer(block + "mlp.fc1", 4 * c, c) | layer(block + "mlp.fc2", c, 4 * c)
            if i == 3:
                shapes |= layer(block + "attn.to_qkv", 3 * c, c, bias=False) | layer(block + "attn.to_out", c, c)
                continue
            mixed = 2 * c + 2 * d_state
            shapes |= {block + f"attn.{name}": (heads[i],) for name in ("dt_bias", "A_log", "D")}
            shapes |= layer(block + "attn.in_proj", 2 * c + mixed + heads[i], c, bias=False)
            shapes |= layer(block + "attn.conv2d", mixed, 1, 3, 3) | layer(block + "attn.norm", 2 * c)
            shapes |= layer(block + "attn.out_proj", c, 2 * c, bias=False)
        if i < 3:
            down = f"layers.{i}.downsample.conv."
            shapes |= layer(down + "0.conv", 8 * c, c, 1, 1) | layer(down + "1.conv", 8 * c, 1, 3, 3)
            shapes |= layer(down + "2.conv", 2 * c, 8 * c, 1, 1) | batch_norm(down + "2.norm", 2 * c)
        if not classifier:
            shapes |= layer(f"outnorm{i}", c)
    return shapes | (layer("classifier.norm", 8 * dim) | layer("classifier.head", 1000, 8 * dim) if classifier else {})


def official_file(*arguments: object, **options: bool) -> dict[str, torch.Tensor]:
    """Random values that make every part of the network matter."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, size in official_shapes(*arguments, **options).items():
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(3)
        elif key.endswith("running_var"):
            state[key] = noise.exp()
        elif len(size) > 1:
            state[key] = noise * math.prod(size[1:]) ** -0.5
        else:
            state[key] = 0.4 * noise + (1 if key.endswith((".D", "weight")) else 0)
    return state


def learnt(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(size) for key, size in shapes.items() if "running" not in key and "tracked" not in key)


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameter_counts(arch):
    *shape, millions = PUBLISHED[arch]
    with torch.device("meta"):
        model, bare = VSSD(arch), VSSD(arch, out_norm=False)
    assert sum(p.numel() for p in model.parameters()) == learnt(official_shapes(*shape))
    head = 2 * 8 * shape[0] + 1000 * 8 * shape[0] + 1000
    assert sum(p.numel() for p in bare.parameters()) + head == learnt(official_shapes(*shape, classifier=True))
    assert round((sum(p.numel() for p in bare.parameters()) + head) / 1e6, 3) == millions


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("classifier", [False, True])
def test_published_keys_are_mapped(arch, classifier):
    with torch.device("meta"):
        model = VSSD(arch)
        official = {key: torch.empty(size) for key, size in official_shapes(*PUBLISHED[arch][:4], classifier=classifier).items()}
    converted, report = convert(official, model, family="vssd")
    assert not report.unexpected and not report.mismatched and not report.resized
    assert report.missing == ([f"outnorm.{i}.{name}" for i in range(4) for name in ("weight", "bias")] if classifier else [])
    assert report.dropped == [key for key in official if key.startswith("classifier.")]
    assert report.mapped.keys() | set(report.dropped) == official.keys()
    targets = model.state_dict()
    assert {name: value.shape for name, value in converted.items()} == {n: v.shape for n, v in targets.items() if n not in report.missing}


def test_round_trip_through_a_published_file(tmp_path):
    torch.save({"model": official_file(*SMALL, classifier=True)}, tmp_path / "vssd.pth")
    model = model_of()
    with pytest.raises(CheckpointError, match=r"missing: outnorm\.3\.weight"):
        load_checkpoint(model, tmp_path / "vssd.pth", family="vssd")
    report = load_checkpoint(model, tmp_path / "vssd.pth", family="vssd", allow_missing=["outnorm.*"])
    assert len(report.missing) == 8 and not report.unexpected
    report = load_checkpoint(model_of(out_norm=False), tmp_path / "vssd.pth", family="vssd")
    assert not report.missing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("layers.2.blocks.1.attn.D"), r"missing: stages\.2\.1\.token\.D"),
        (lambda file: file.pop("patch_embed.conv1.norm.running_var"), r"missing: patch_embed\.conv1\.norm\.running_var"),
        (lambda file: file.update({"layers.0.blocks.1.norm1.weight": torch.ones(8)}), r"unexpected: layers\.0\.blocks\.1\.norm1\.weight"),
        (lambda file: file.update({"layers.0.blocks.0.attn.D": torch.ones(2)}), r"attn\.D has shape \(2,\).*needs \(1,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message):
    file = official_file(*SMALL)
    change(file)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model_of(), file, family="vssd")


def conv_layer(file: dict, prefix: str, x: torch.Tensor, *, act: bool = True, **options: int) -> torch.Tensor:
    """Convolution, batch norm by its running statistics if the file has one, ReLU."""
    weight = file[prefix + "conv.weight"]
    x = F.conv2d(x, weight, file.get(prefix + "conv.bias"), padding=weight.shape[2] // 2, **options)
    if prefix + "norm.weight" in file:
        mean, var, gain, bias = (file[f"{prefix}norm.{name}"].view(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean) / (var + 1e-5).sqrt() * gain + bias
    return x.clamp(min=0) if act else x


def norm(file: dict, prefix: str, x: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the channels of (C, H, W)."""
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return x * file[prefix + ".weight"].view(-1, 1, 1) + file[prefix + ".bias"].view(-1, 1, 1)


def pointwise(file: dict, prefix: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.einsum("oc,chw->ohw", file[prefix + ".weight"], x)
    return y + file[prefix + ".bias"].view(-1, 1, 1) if prefix + ".bias" in file else y


def depthwise(file: dict, prefix: str, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x[None], file[prefix + ".weight"], file[prefix + ".bias"], padding=1, groups=len(x))[0]


def nc_ssd(file: dict, prefix: str, x: torch.Tensor, heads: int, states: int) -> torch.Tensor:
    """The mixer on a map (C, H, W), head by head, a sum over tokens."""
    width = file[prefix + "out_proj.weight"].shape[1]
    z, mixed, dt = pointwise(file, prefix + "in_proj", x).split([width, width + 2 * states, heads])
    mixed = F.silu(depthwise(file, prefix + "conv2d", mixed))
    x, B, C = mixed.flatten(1).split([width, states, states])
    step = F.softplus(dt.flatten(1) + file[prefix + "dt_bias"][:, None])
    y = torch.empty_like(x)
    for h, rows in enumerate(torch.arange(width).chunk(heads)):
        state = sum(file[prefix + "A_log"][h].exp() * step[h, j] * torch.outer(x[rows, j], B[:, j]) for j in range(x.shape[1]))
        y[rows] = state @ C + file[prefix + "D"][h] * x[rows]
    return pointwise(file, prefix + "out_proj", norm(file, prefix + "norm", y.view_as(z)) * z)


def attention(file: dict, prefix: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = pointwise(file, prefix + "to_qkv", x).flatten(1).chunk(3)
    parts = [
        vh @ torch.softmax(qh.T @ kh * (len(x) / heads) ** -0.5, dim=1).T
        for qh, kh, vh in zip(q.chunk(heads), k.chunk(heads), v.chunk(heads), strict=True)
    ]
    return pointwise(file, prefix + "to_out", torch.cat(parts).view_as(x))


def published_forward(file: dict, x: torch.Tensor, heads: tuple[int, ...], states: int, depths: tuple[int, ...]) -> list[torch.Tensor]:
    """Levels of one image (3, H, W)."""
    stem = "patch_embed."
    x = conv_layer(file, stem + "conv1.", x[None], stride=2)
    x = x + conv_layer(file, stem + "conv2.1.", conv_layer(file, stem + "conv2.0.", x), act=False)
    x = conv_layer(file, stem + "conv3.1.", conv_layer(file, stem + "conv3.0.", x, stride=2), act=False)[0]
    levels = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            x = x + depthwise(file, block + "cpe1", x)
            h = norm(file, block + "norm1", x)
            if block + "attn.to_qkv.weight" in file:
                x = x + attention(file, block + "attn.", h, heads[i])
            else:
                x = x + nc_ssd(file, block + "attn.", h, heads[i], states)
            x = x + depthwise(file, block + "cpe2", x)
            x = x + pointwise(file, block + "mlp.fc2", F.gelu(pointwise(file, block + "mlp.fc1", norm(file, block + "norm2", x))))
        levels.append(norm(file, f"outnorm{i}", x))
        down = f"layers.{i}.downsample.conv."
        if i < 3:
            x = conv_layer(file, down + "0.", x[None])
            x = conv_layer(file, down + "1.", x, stride=2, groups=x.shape[1])
            x = conv_layer(file, down + "2.", x, act=False)[0]
    return levels


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (17, 1)])
def test_published_formula(size):
    """Every level, in float64, against the formulas written out with a file in the official layout."""
    dim, states, depths, heads = SMALL
    file = official_file(*SMALL)
    config = backbone_config(embed_dim=dim, depths=depths, num_heads=heads, d_state=states, drop_path_rate=0.3)
    model = VSSD(**{key: value for key, value in config.items() if key != "type"}).double().eval()
    load_checkpoint(model, file, family="vssd")
    x = torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for ours, expected in zip(model(x[None]), published_forward(file, x, heads, states, depths), strict=True):
        assert (ours[0] - expected).norm() < 1e-10 * expected.norm()


def test_mixers_of_any_stage_and_width():
    """Attention in every stage, another expansion and another MLP: what the constructor's arguments say, the tensors have."""
    arch = dict(
        dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), mixers=("attention", "ssd", "attention", "ssd"), expand=1.5, mlp_ratio=2
    )
    model = model_of(arch)
    assert [hasattr(stage[0].token, "qkv") for stage in model.stages] == [True, False, True, False]
    assert model.stages[1][0].token.out_proj.in_features == 24 and model.stages[0][0].channel.fc1.out_features == 16
    assert [level.shape[1] for level in model.eval()(torch.randn(1, 3, 33, 40))] == [8, 16, 32, 64]


def test_mixer_is_the_non_causal_ssd_operator():
    torch.manual_seed(0)
    mixer = NCSSD(12, num_heads=3, d_state=5, expand=2).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    z, mixed, dt = mixer.in_proj(x).split([24, 34, 3], 2)
    v, B, C = F.silu(to_tokens(mixer.conv(to_map(mixed, (4, 5))))).split([24, 5, 5], 2)
    y = ssd(
        v.unflatten(2, (3, 8)), dt, -mixer.A_log.exp(), B[:, :, None], C[:, :, None], mixer.D, None, mixer.dt_bias, None, True, causal=False
    )
    expected = mixer.out_proj(mixer.norm(y.flatten(2)) * z)
    assert torch.allclose(mixer(x, (4, 5)), expected, rtol=1e-11, atol=1e-13)


def test_mixer_does_not_read_an_order():
    """Without the convolution's neighbours (a 1 x 1 kernel's worth of weight) tokens in another order give the same outputs, reordered."""
    torch.manual_seed(0)
    mixer = NCSSD(12, num_heads=3, d_state=5, expand=2).double()
    with torch.no_grad():
        mixer.conv.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    x, order = torch.randn(1, 20, 12, dtype=torch.float64), torch.randperm(20)
    assert torch.allclose(mixer(x, (4, 5))[:, order], mixer(x[:, order], (4, 5)), rtol=1e-10, atol=1e-12)


def test_float16_sums_over_many_tokens_stay_in_range():
    """The state of 128 x 128 tokens and the output before the norm reach 1.5e5 and 7e5 here; float16 ends at 65504."""
    torch.manual_seed(0)
    mixer = NCSSD(8, num_heads=2, d_state=4, expand=2)
    with torch.no_grad():
        mixer.dt_bias += 6
        mixer.in_proj.weight *= 4
    x = torch.randn(1, 128 * 128, 8)
    expected = mixer(x, (128, 128))
    half = mixer.half()(x.half(), (128, 128))
    assert (half.float() - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("with_cp", [False, True])
def test_running_statistics_count_a_batch_once(with_cp):
    """Checkpointed or not: after one step, the same outputs, gradients and running statistics, which moved by the momentum."""
    results = []
    for recompute in (False, with_cp):
        model = model_of(with_cp=recompute, drop_path_rate=0.3)
        torch.manual_seed(3)
        outputs = model(torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(4)))
        sum(level.square().mean() for level in outputs).backward()
        results.append([*outputs, *(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    model = model_of(with_cp=with_cp)
    seen = []
    model.patch_embed.conv1.conv.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    sum(level.mean() for level in model(torch.randn(2, 3, 40, 48))).backward()
    assert torch.allclose(model.patch_embed.conv1.norm.running_mean, 0.1 * seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-7)
    assert all(int(value) == 1 for name, value in model.named_buffers() if name.endswith("num_batches_tracked"))


def test_norm_eval_keeps_the_running_statistics():
    model = model_of(norm_eval=True).train()
    before = [value.clone() for value in model.buffers()]
    model(torch.randn(2, 3, 40, 48))
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


@pytest.mark.parametrize("batch", [1, 2])
def test_gradient_through_batch_norm_at_any_batch_size(batch):
    """Against a central difference in float64: PyTorch's gradient of batch norm is wrong for some memory layouts of a single image."""
    model = model_of().double().eval()
    load_checkpoint(model, official_file(*SMALL), family="vssd")
    x, direction = torch.randn(2, batch, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    probes = [torch.randn(level.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) for level in model(x)]

    def value(image: torch.Tensor) -> torch.Tensor:
        return sum((level * probe).sum() for level, probe in zip(model(image), probes, strict=True))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    with torch.no_grad():
        difference = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_and_maps_are_views_of_one_layout(batch):
    tokens = torch.randn(batch, 12, 5)
    image = to_map(tokens, (3, 4))
    assert torch.equal(image, tokens.mT.reshape(batch, 5, 3, 4)) and torch.equal(to_tokens(image), tokens)
    assert image.is_contiguous(memory_format=torch.channels_last) and image.data_ptr() == tokens.data_ptr()
    assert image.stride() == (60, 1, 20, 5) and to_tokens(image).data_ptr() == tokens.data_ptr()


def test_tokens_are_contiguous_in_every_block():
    model, seen = model_of().eval(), []
    for stage in model.stages:
        for block in stage:
            block.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    model(torch.randn(1, 3, 64, 96))
    assert seen == [True] * 5


def test_one_exported_graph_serves_all_sizes():
    model = model_of().eval()
    sizes = {2: 32 * torch.export.Dim("rows", min=2, max=30), 3: 32 * torch.export.Dim("columns", min=2, max=30)}
    exported = torch.export.export(model, (torch.randn(1, 3, 64, 96),), dynamic_shapes={"x": sizes}).module()
    x = torch.randn(1, 3, 128, 160)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exported(x), model(x), strict=True))


def test_drop_path_rises_over_all_blocks():
    blocks = [block for stage in model_of(drop_path_rate=0.4).stages for block in stage]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_initial_values():
    model = model_of(dict(dim=32, depths=(1, 1, 1, 1), num_heads=(16, 16, 16, 16)))
    for stage in model.stages[:3]:
        token = stage[0].token
        assert torch.equal(token.D, torch.ones(16)) and 1 <= token.A_log.exp().min() < 5 and 10 < token.A_log.exp().max() <= 16 + 1e-4
        step = F.softplus(token.dt_bias)
        assert 1e-3 <= step.min() < 1e-2 and 0.02 < step.max() <= 0.1 + 1e-6
        assert token.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert token.no_weight_decay() == {"dt_bias", "A_log", "D"}
    assert not model.stages[3][0].token.proj.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="mirco"), "unknown arch 'mirco'.*'micro'"),
        (dict(arch={"dim": 8, "depth": (1, 1, 1, 1)}), "unknown key of arch 'depth'.*'depths'"),
        (dict(arch={"dim": 8}), "needs depths"),
        (dict(arch={"dim": 7, "depths": (1, 1, 1, 1)}), "dim must be a positive even int, got 7"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1)}), "depths must be four positive ints"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 0)}), "depths must be four positive ints"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "num_heads": (3, 3, 3, 3)}), "num_heads must divide the inner width 16, got 3"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 3)}), "num_heads must divide the width 64, got 3"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "mixers": ("ssd",)}), "mixers must be four names"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "mixers": ("ssd", "ssd", "sdd", "ssd")}), "unknown mixer 'sdd'.*'ssd'"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "d_state": 0}), "d_state must be a positive int, got 0"),
        (dict(arch={"dim": 8, "depths": (1, 1, 1, 1), "mlp_ratio": 0}), "mlp_ratio must be a positive number"),
        (dict(drop_path_rate=1.0), "drop_path_rate"),
        (dict(in_channels=0), "in_channels"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        VSSD(**{"arch": "test", **arguments})


def test_official_arguments():
    official = FAMILIES["vssd"].official
    assert (
        official["VMAMBA2"] is classifier_config and official["Backbone_VMAMBA2"] is official["Backbone_VMAMBA2 (VSSD)"] is backbone_config
    )
    config = backbone_config(embed_dim=16, depths=[1, 2, 3, 4], num_heads=[1, 2, 4, 8], d_state=12, attn_types=["standard"] * 4, in_chans=1)
    assert config == dict(
        type="linescan.VSSD",
        arch=dict(dim=16, depths=(1, 2, 3, 4), num_heads=(1, 2, 4, 8), d_state=12, mixers=("attention",) * 4, expand=2, mlp_ratio=4.0),
        out_norm=True,
        out_indices=(0, 1, 2, 3),
        in_channels=1,
        drop_path_rate=0.2,
    )
    assert classifier_config(num_classes=7)["out_norm"] is False
    for argument in (
        dict(ssd_ngroups=2),
        dict(linear_attn_duality=False),
        dict(ssd_positve_dA=False),
        dict(simple_downsample=True),
        dict(simple_patch_embed=True),
        dict(bidirection=True),
        dict(pretrained="vssd.pth"),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(argument))}=.*no counterpart"):
            backbone_config(**argument)
    with pytest.raises(ValueError, match=r"unknown attn_types 'mamba'.*'mamba2'"):
        backbone_config(attn_types=["mamba"] * 4)
