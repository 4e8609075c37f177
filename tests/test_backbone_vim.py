"""Vim: sizes, published checkpoints, the formula as plain loops, tokens and maps, initial values and errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from linescan.backbones import Vim
from linescan.backbones.checkpoints import FAMILIES, CheckpointError, convert, load_checkpoint
from linescan.backbones.vim import vision_mamba_config

# Millions of parameters of the published models, with their classifier (C x 1000 weights, 1000 biases).
PUBLISHED = {"tiny": (192, 7.148), "small": (384, 25.80), "base": (768, 97.60)}


def model_of(arch: str = "test", **arguments: object) -> Vim:
    torch.manual_seed(0)
    return Vim(arch, **arguments)


def official_shapes(dim: int, depth: int, d_state: int, patches: int, *, class_token: bool = True) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of an official file."""
    inner, rank = 2 * dim, math.ceil(dim / 16)
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, patches + class_token, dim)}
    if class_token:
        shapes["cls_token"] = (1, 1, dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        mixer = f"layers.{i}.mixer."
        shapes |= {f"layers.{i}.norm.weight": (dim,), mixer + "in_proj.weight": (2 * inner, dim), mixer + "out_proj.weight": (dim, inner)}
        for b in ("", "_b"):
            shapes |= {mixer + f"A{b}_log": (inner, d_state), mixer + f"D{b}": (inner,)}
            shapes |= {mixer + f"conv1d{b}.weight": (inner, 1, 4), mixer + f"conv1d{b}.bias": (inner,)}
            shapes |= {mixer + f"x_proj{b}.weight": (rank + 2 * d_state, inner)}
            shapes |= {mixer + f"dt_proj{b}.weight": (inner, rank), mixer + f"dt_proj{b}.bias": (inner,)}
    return shapes | {"norm_f.weight": (dim,), "head.weight": (1000, dim), "head.bias": (1000,)}


def official_file(*shape: int, **options: bool) -> dict[str, torch.Tensor]:
    """Random values that make every part of the network matter."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, size in official_shapes(*shape, **options).items():
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        if "norm" in key:
            state[key] = 1 + 0.2 * noise
        else:
            state[key] = noise * (math.prod(size[1:]) ** -0.5 if "weight" in key else 0.5)
    return state


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("class_token", [True, False])
def test_parameter_counts(arch, class_token):
    dim, millions = PUBLISHED[arch]
    with torch.device("meta"):
        model = Vim(arch, class_token=class_token)
    shapes = official_shapes(dim, 24, 16, 196, class_token=class_token)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(math.prod(size) for key, size in shapes.items() if not key.startswith("head."))
    assert (count + 1000 * dim + 1000) / 1e6 == pytest.approx(millions, abs=5e-4 if arch == "tiny" else 5e-3)


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("img_size", [224, (512, 384)])
def test_published_keys_are_mapped(arch, img_size):
    with torch.device("meta"):
        model = Vim(arch, img_size=img_size)
        official = {key: torch.empty(size) for key, size in official_shapes(PUBLISHED[arch][0], 24, 16, 196).items()}
    converted, report = convert(official, model, family="vim")
    assert not report.missing and not report.unexpected and not report.mismatched
    assert sorted(report.dropped) == ["head.bias", "head.weight"]
    assert list(report.resized) == ([] if img_size == 224 else ["pos_embed"])
    assert {**report.mapped, **report.resized}.keys() == official.keys() - set(report.dropped) | {"pos_embed (class token)"}
    assert {name: value.shape for name, value in converted.items()} == {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("patches", [9, 12, 196])
def test_class_slot_is_taken_out_of_the_middle(patches):
    model = model_of(img_size=(16, 16 * patches))
    official = official_file(32, 3, 4, patches)
    official["pos_embed"] = torch.arange(patches + 1.0).view(1, -1, 1).expand(-1, -1, 32)
    converted, _ = convert(official, model, family="vim")
    rest = [float(i) for i in range(patches + 1) if i != patches // 2]
    assert converted["cls_pos_embed"].unique().tolist() == [patches // 2]
    assert converted["pos_embed"][0, 0].flatten().tolist() == rest


def test_position_embedding_is_resized_without_the_class_slot():
    official = official_file(32, 3, 4, 12)
    embed = official["pos_embed"]
    patches = torch.cat((embed[:, :6], embed[:, 7:]), 1).transpose(1, 2)
    for grid, source in (((5, 2), (3, 4)), ((3, 4), None), ((4, 3), None)):
        model = model_of(img_size=(grid[0] * 16, grid[1] * 16))
        load_checkpoint(model, official, family="vim", source_grid=source)
        expected = F.interpolate(patches.reshape(1, 32, *(source or grid)), grid, mode="bicubic")
        assert torch.equal(model.pos_embed, expected.float()) and torch.equal(model.cls_pos_embed, embed[:, 6:7].float())


def test_round_trip_through_a_published_file(tmp_path):
    model = model_of()
    official = {key: value.float() for key, value in official_file(32, 3, 4, 196).items()}
    torch.save({"model": official, "epoch": 3}, tmp_path / "vim.pth")
    report = load_checkpoint(model, tmp_path / "vim.pth", family="vim")
    assert not report.missing and torch.equal(model.layers[1].token.directions[1].conv.bias, official["layers.1.mixer.conv1d_b.bias"])
    assert all(torch.isfinite(level).all() for level in model(torch.randn(1, 3, 50, 40)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("layers.2.mixer.D_b"), r"missing: layers\.2\.token\.directions\.1\.D"),
        (lambda file: file.pop("cls_token"), r"missing: cls_token(?s:.*)missing: cls_pos_embed(?s:.*)wrong shape: pos_embed"),
        (lambda file: file.update({"layers.0.norm.bias": torch.ones(32)}), r"unexpected: layers\.0\.norm\.bias"),
        (lambda file: file.update({"layers.3.norm.weight": torch.ones(32)}), r"unexpected: layers\.3\.norm\.weight"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message):
    file = official_file(32, 3, 4, 196)
    change(file)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model_of(), file, family="vim")


def test_file_with_class_token_does_not_fit_a_model_without():
    file = official_file(32, 3, 4, 196)
    with pytest.raises(CheckpointError, match=r"unexpected: pos_embed \(class token\)"):
        load_checkpoint(model_of(class_token=False), file, family="vim")
    report = load_checkpoint(model_of(class_token=False), file, family="vim", allow_unexpected=["cls_token", "pos_embed (class token)"])
    assert "cls_token" in report.dropped and not report.missing


def scan(file: dict, prefix: str, mark: str, v: torch.Tensor) -> torch.Tensor:
    """One direction over v (B, T, D), token by token."""
    weight, bias = file[f"{prefix}conv1d{mark}.weight"], file[f"{prefix}conv1d{mark}.bias"]
    A, skip = -torch.exp(file[f"{prefix}A{mark}_log"]), file[f"{prefix}D{mark}"]
    state, outputs = 0, []
    for t in range(v.shape[1]):
        u = F.silu(bias + sum(weight[:, 0, 3 - back] * v[:, t - back] for back in range(4) if t >= back))
        projected = u @ file[f"{prefix}x_proj{mark}.weight"].T
        dt, B, C = projected.split([projected.shape[1] - 2 * A.shape[1], A.shape[1], A.shape[1]], 1)
        step = F.softplus(dt @ file[f"{prefix}dt_proj{mark}.weight"].T + file[f"{prefix}dt_proj{mark}.bias"])
        state = torch.exp(step[..., None] * A) * state + (step * u)[..., None] * B[:, None]
        outputs.append((state * C[:, None]).sum(-1) + skip * u)
    return torch.stack(outputs, 1)


def published_forward(file: dict, x: torch.Tensor, *, stride: int, depth: int, divide_out: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Streams after each layer and the normed tokens, in the published (hidden, residual) form."""

    def norm(r: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    hidden = F.conv2d(x, file["patch_embed.proj.weight"], file["patch_embed.proj.bias"], stride=stride).flatten(2).mT
    if "cls_token" in file:
        middle = hidden.shape[1] // 2
        hidden = torch.cat((hidden[:, :middle], file["cls_token"].expand(len(x), -1, -1), hidden[:, middle:]), 1)
    hidden, residual, streams = hidden + file["pos_embed"], 0, []
    for i in range(depth):
        prefix = f"layers.{i}.mixer."
        residual = residual + hidden
        if i:
            streams.append(residual)
        v, z = (norm(residual, file[f"layers.{i}.norm.weight"]) @ file[prefix + "in_proj.weight"].T).chunk(2, -1)
        ahead = scan(file, prefix, "", v) * F.silu(z)
        back = (scan(file, prefix, "_b", v.flip(1)) * F.silu(z.flip(1))).flip(1)
        hidden = (ahead + back) / (2 if divide_out else 1) @ file[prefix + "out_proj.weight"].T
    return [*streams, residual + hidden], norm(residual + hidden, file["norm_f.weight"])


@pytest.mark.parametrize("divide_out", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("stride", "size", "grid"), [(16, (48, 32), (3, 2)), (16, (16, 80), (1, 5)), (8, (40, 32), (4, 3))])
def test_published_formula(divide_out, class_token, stride, size, grid):
    """Every level, in float64, against plain loops over the tokens of a file in the official layout."""
    file = official_file(32, 3, 4, math.prod(grid), class_token=class_token)
    config = vision_mamba_config(
        img_size=size, stride=stride, depth=3, embed_dim=32, d_state=4, if_cls_token=class_token, if_divide_out=divide_out
    )
    model = Vim(**{key: value for key, value in config.items() if key != "type"}).double().eval()
    load_checkpoint(model, file, family="vim")
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    streams, final = published_forward(file, x, stride=stride, depth=3, divide_out=divide_out)
    for level, tokens in zip(model(x), [*streams[:-1], final], strict=True):
        if class_token:
            middle = math.prod(grid) // 2
            tokens = torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), 1)
        expected = tokens.mT.reshape(2, 32, *grid)
        ours = level[:, :, : grid[0], : grid[1]]
        assert (ours - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("size", [(64, 40), (33, 16), (17, 1), (8, 8), (9, 30), (1, 100)])
def test_maps_of_overlapping_patches_repeat_their_edge(size):
    model = model_of("test_overlap").eval()
    x = torch.randn(1, 3, *size)
    tokens, grid = model.embed(x)
    assert grid == tuple(max(math.ceil((n - 16) / 8), 0) + 1 for n in size)
    level = model(x)[-1]
    for layer in range(2):
        tokens = model.run_layer(layer, tokens, grid)
    exact = model.to_map(model.final(tokens), grid)
    height, width = (math.ceil(n / 8) for n in size)
    assert level.shape[2:] == (height, width)
    rows, columns = (torch.arange(n).clamp(max=m - 1) for n, m in zip((height, width), grid, strict=True))
    assert torch.equal(level, exact[:, :, rows][:, :, :, columns])


def test_what_patches_do_not_cover_is_padded_with_zeros():
    model = model_of().eval()
    x = torch.randn(1, 3, 20, 5)
    assert all(torch.equal(a, b) for a, b in zip(model(x), model(F.pad(x, (0, 11, 0, 12))), strict=True))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (3, 3)])
def test_tokens_are_split_and_joined(class_token, grid):
    model = model_of(class_token=class_token)
    tokens = torch.randn(2, math.prod(grid) + class_token, 32)
    before, patches, after = model.split_tokens(tokens, grid)
    assert (before.shape[1], patches.shape[1], after.shape[1]) == (class_token, math.prod(grid), 0)
    if class_token:
        assert torch.equal(before, tokens[:, math.prod(grid) // 2, None])
    assert torch.equal(model.join_tokens(before, patches, after), tokens)
    assert torch.equal(model.to_map(tokens, grid), patches.mT.reshape(2, 32, *grid))


def test_class_token_is_read_through_the_scans():
    model = model_of().eval()
    x = torch.randn(1, 3, 48, 48)
    before = model(x)[0]
    torch.nn.init.normal_(model.cls_token, std=5)
    changed = (model(x)[0] != before).any(1)
    assert changed.all(), "tokens on both sides see it"


def test_stream_stays_in_float32():
    model = model_of().bfloat16().eval()
    x = torch.randn(1, 3, 32, 32).bfloat16()
    tokens, grid = model.embed(x)
    assert tokens.dtype == model.run_layer(0, tokens, grid).dtype == torch.float32
    assert all(level.dtype == torch.bfloat16 for level in model(x))


def test_drop_path_rises_to_the_full_rate():
    assert [getattr(layer.drop_path, "drop_prob", 0.0) for layer in model_of(drop_path_rate=0.4).layers] == pytest.approx([0, 0.2, 0.4])
    single = model_of(dict(dim=16, depth=1), drop_path_rate=0.4)
    assert single.layers[0].drop_path.drop_prob == 0.4


def test_initial_values():
    model = model_of(dict(dim=64, depth=4))
    for layer in model.layers:
        assert layer.token.out_proj.weight.std().item() == pytest.approx((1 / (3 * 128)) ** 0.5 / 2, rel=0.1)
        for direction in layer.token.directions:
            assert torch.allclose(direction.A_log.exp(), torch.arange(1.0, 17).expand(128, -1))
            assert torch.equal(direction.D, torch.ones(128))
            step = F.softplus(direction.dt_proj.bias)
            assert 1e-3 <= step.min() < 3e-3 and 0.03 < step.max() <= 0.1 + 1e-6
            assert direction.dt_proj.weight.abs().max() <= 0.5
    assert model.patch_embed.weight.std().item() == pytest.approx(768**-0.5, rel=0.1) and not model.patch_embed.bias.any()
    for embed in (model.pos_embed, model.cls_token, model.cls_pos_embed):
        assert embed.std().item() == pytest.approx(0.02, rel=0.3)


def test_no_weight_decay():
    model = model_of()
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "cls_pos_embed"}
    assert model_of(class_token=False).no_weight_decay() == {"pos_embed"}
    assert model.layers[0].token.directions[1].no_weight_decay() == {"A_log", "D"}


def test_architecture_may_be_a_dict_and_arguments_win():
    model = Vim(dict(dim=16, depth=1, patch_stride=8), patch_stride=16, class_token=False, img_size=(32, 48), in_channels=1)
    assert model.out_strides == (16,) and model.pos_embed.shape == (1, 16, 2, 3) and model.cls_token is None
    assert model(torch.randn(1, 1, 20, 20))[0].shape == (1, 16, 2, 2)
    assert Vim("test", patch_stride=8, img_size=224).pos_embed.shape == (1, 32, 27, 27)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="tinny"), ValueError, "unknown arch 'tinny'.*'tiny'"),
        (dict(arch={"dims": 8}), ValueError, "unknown key of arch 'dims'.*'dim'"),
        (dict(arch={"depth": 2}), ValueError, "needs dim"),
        (dict(arch={"dim": 8, "depth": 0}), ValueError, "depth must be a positive int, got 0"),
        (dict(arch={"dim": True}), ValueError, "dim must be a positive int, got True"),
        (dict(arch={"dim": 8, "class_token": 1}), ValueError, "class_token must be a bool, got 1"),
        (dict(patch_stride=0), ValueError, "patch_stride must be a positive int, got 0"),
        (dict(class_token="middle"), ValueError, "class_token must be a bool, got 'middle'"),
        (dict(img_size=0), ValueError, r"img_size must be \(h, w\)"),
        (dict(img_size=(224,)), ValueError, r"img_size must be \(h, w\)"),
        (dict(img_size="224"), ValueError, r"img_size must be \(h, w\)"),
        (dict(drop_path_rate=1.0), ValueError, "drop_path_rate"),
        (dict(in_channels=0), ValueError, "in_channels"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        Vim(**{"arch": "test", **arguments})


def test_official_arguments():
    assert FAMILIES["vim"].official["VisionMamba"] is vision_mamba_config
    config = vision_mamba_config(img_size=(72, 104), stride=8, channels=4, final_pool_type="mean", num_classes=7, residual_in_fp32=False)
    assert config == dict(
        type="linescan.Vim",
        arch=dict(dim=192, depth=24, d_state=16, patch_size=16, patch_stride=8, class_token=True, divide_out=True),
        img_size=(72, 104),
        in_channels=4,
        drop_path_rate=0.1,
    )
    assert not vision_mamba_config(if_cls_token=False, use_middle_cls_token=False, if_divide_out=False)["arch"]["class_token"]


@pytest.mark.parametrize(
    "argument",
    [
        dict(rms_norm=False),
        dict(drop_rate=0.1),
        dict(bimamba_type="v1"),
        dict(if_rope=True),
        dict(if_abs_pos_embed=False),
        dict(use_middle_cls_token=False),
        dict(use_double_cls_token=True),
        dict(norm_epsilon=1e-6),
        dict(flip_img_sequences_ratio=0.5),
        dict(final_pool_type="median"),
        dict(img_size=100),
        dict(img_size=(8, 16)),
    ],
    ids=str,
)
def test_official_values_without_counterpart_are_named(argument):
    with pytest.raises(ValueError, match=f"^{next(iter(argument))}=.*no counterpart"):
        vision_mamba_config(**argument)
