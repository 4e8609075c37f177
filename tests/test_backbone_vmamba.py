"""VMamba: parameter counts, initial values, levels, layers, plain arguments and errors."""

import pytest
import torch
from torch import nn

from linescan.backbones import VMamba
from linescan.backbones.vmamba import ARCHS
from linescan.profiling import count_macs

# Published parameters in millions. They are the classifier's: the backbone without norms of levels, plus LN and Linear to 1000 classes.
PARAMETERS = {
    "tiny": 30.25,
    "tiny_s2l5": 30.71,
    "small": 50.15,
    "base": 88.56,
    "small_s1l20": 49.01,
    "base_s1l20": 86.61,
    "tiny_v0": 22.893,
    "small_v0": 44.417,
    "base_v0": 76.254,
    "tiny_m0": 25.340,
    "small_m0": 39.080,
    "base_m0": 67.528,
}


def test_every_published_size_has_a_count():
    assert {*PARAMETERS, "micro"} == {arch for arch in ARCHS if not arch.startswith("test")}


def test_micro_is_tiny_at_half_its_width():
    assert ARCHS["micro"]["mixer"] == ARCHS["tiny"]["mixer"] and [2 * dim for dim in ARCHS["micro"]["dims"]] == list(ARCHS["tiny"]["dims"])
    with torch.device("meta"):
        assert sum(p.numel() for p in VMamba("micro").parameters()) == 5_845_344


@pytest.mark.parametrize(("arch", "millions"), PARAMETERS.items())
def test_parameter_counts(arch, millions):
    with torch.device("meta"):
        full, bare = VMamba(arch), VMamba(arch, out_norm=False)
    own = sum(p.numel() for p in bare.parameters())
    width = ARCHS[arch]["dims"][-1]
    digits = 3 if "_v0" in arch or "_m0" in arch else 2
    assert round((own + 2 * width + 1000 * width + 1000) / 1e6, digits) == millions
    assert sum(p.numel() for p in full.parameters()) == own + 2 * sum(ARCHS[arch]["dims"])


# Published GFLOPs at 224 x 224. What they count: multiply-adds, (9 N + 1) per token and channel of a scan, 5 per element of a LayerNorm.
GFLOPS = {"tiny": 4.91, "tiny_s2l5": 4.86, "small": 8.72, "base": 15.36, "tiny_v0": 5.63}


@pytest.mark.parametrize(("arch", "published"), GFLOPS.items())
def test_published_flops(arch, published):
    with torch.device("meta"):
        model = VMamba(arch, out_norm=False).eval()
    count = count_macs(model, (1, 3, 224, 224))
    normed = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda module, args, output: normed.append(output.numel()))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    width = ARCHS[arch]["dims"][-1]
    classifier = 1000 * width + 5 * 49 * width
    assert round((count.macs + count.scan_ops + 5 * sum(normed) + classifier) / 1e9, 2) == published


def test_initial_values():
    model = VMamba("test_v0")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.bias is None or not module.bias.any()
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any() and module.eps == 1e-5
    mlp = VMamba("test").stages[3][0].channel
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1) and not mlp.fc1.bias.any()


def test_drop_path_rises_over_the_whole_network():
    blocks = [block for stage in VMamba("test", drop_path_rate=0.4).stages for block in stage]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_levels_that_are_not_returned_cost_nothing():
    """No norm for them, and no stage above the highest is computed."""
    model = VMamba("test", out_indices=(1,)).eval()
    assert list(model.outnorm) == ["1"]
    computed = []
    for i, stage in enumerate(model.stages):
        stage[0].register_forward_hook(lambda *_, i=i: computed.append(i))
    assert model(torch.randn(1, 3, 32, 32))[0].shape == (1, 16, 4, 4) and computed == [0, 1]


def test_layers_of_the_learning_rate_decay():
    ids = VMamba("test").layer_ids()
    assert ids["patch_embed.conv1.weight"] == 0 and ids["stages.0.0.token.A_log"] == ids["outnorm.0.bias"] == 1
    assert ids["downsamples.0.conv.weight"] == ids["stages.1.0.norm1.weight"] == 2
    assert (ids["downsamples.1.norm.bias"], ids["stages.2.0.channel.fc1.weight"], ids["stages.2.1.norm2.bias"]) == (3, 3, 4)
    assert ids["outnorm.2.weight"] == 4 and ids["outnorm.3.weight"] == ids["stages.3.0.norm1.bias"] == max(ids.values()) == 5


def test_export_with_dynamic_size():
    """One exported graph for all sizes, odd ones included."""
    model = VMamba(dict(ARCHS["test"], depths=(1, 1, 1, 1))).eval()
    sizes = {2: torch.export.Dim("rows", min=33, max=2048), 3: torch.export.Dim("columns", min=33, max=2048)}
    exported = torch.export.export(model, (torch.randn(1, 3, 48, 64),), dynamic_shapes={"x": sizes}).module()
    x = torch.randn(1, 3, 63, 37)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(exported(x), model(x), strict=True))


def test_parts_are_plain_arguments():
    model = VMamba("test", mixer=dict(type="ssd", d_state=3, heads=2), mlp_ratio=0, patch_embed="patch", downsample="merge")
    names = {name.split(".")[-2] for name in model.state_dict()}
    assert not names & {"fc1", "norm2", "conv2"} and "reduction" in names
    assert model.stages[0][0].token.heads == 2 and model.stages[0][0].channel is None
    assert [tuple(o.shape) for o in model(torch.randn(2, 3, 33, 50))] == [(2, 8, 9, 13), (2, 16, 5, 7), (2, 24, 3, 4), (2, 32, 2, 2)]
    by_name = VMamba(dict(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), mixer="ss2d"), in_channels=1)
    assert by_name.stages[0][0].token.width == 16 and len(by_name(torch.randn(1, 1, 9, 9))) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="tiny_v1"), ValueError, "unknown arch 'tiny_v1'.*'tiny_v0'"),
        (dict(arch=dict(dims=(8, 8, 8, 8))), ValueError, "arch as a dict needs depths and mixer"),
        (dict(arch=dict(widths=(8, 8, 8, 8))), ValueError, "unknown key of arch 'widths'"),
        (dict(arch=dict(ARCHS["test"], dims=(8, 8))), ValueError, r"dims must be four positive ints, got \(8, 8\)"),
        (dict(arch=dict(ARCHS["test"], depths=(1, 0, 1, 1))), ValueError, "depths must be four positive ints"),
        (dict(mixer="ss2"), ValueError, "unknown mixer 'ss2'.*'ss2d'"),
        (dict(mixer=dict(d_state=1)), ValueError, "mixer must be a name or dict"),
        (dict(mixer=dict(type="ssd", states=1)), TypeError, "states"),
        (dict(mlp_ratio=-1), ValueError, "mlp_ratio must be 0, or a positive number"),
        (dict(mlp_ratio=0.01), ValueError, "mlp_ratio must be 0, or a positive number"),
        (dict(patch_embed="v2"), ValueError, "unknown patch_embed 'v2'.*conv, patch"),
        (dict(downsample="v3"), ValueError, "unknown downsample 'v3'.*conv, merge"),
        (dict(drop_path_rate=1.0), ValueError, "drop_path_rate"),
    ],
    ids=str,
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        VMamba(**{"arch": "test", **arguments})
