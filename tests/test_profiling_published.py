"""Published costs, reproduced: which sum each paper calls FLOPs, and how near our count comes."""

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from linescan.backbones import BACKBONES, HybridBackbone
from linescan.profiling import count_macs, fvcore_handles
from linescan.profiling.conventions import CONVENTIONS, PAPERS, published_flops, scan_conventions

# RWKV-SAM backbone, MACs in units of 1e9 at 224, 512 and 1024 pixels, and Vision-RWKV's element operations of the scans at 1024:
# (scale, layout, mlp_ratio) -> values. Counted on the official code; closed forms give the same.
ATTENTION_AT = (2, 5, 8, 11)
RWKV_SAM = {
    ("tiny", "transformer", 2): (1.59, 12.85, 119.1, 0.00),
    ("tiny", "rwkv", 4): (1.68, 8.80, 35.2, 0.32),
    ("tiny", "rwkv", 2): (1.28, 6.69, 26.8, 0.32),
    ("tiny", "rwkv_trans", 4): (1.83, 10.87, 62.8, 0.23),
    ("tiny", "mbconv_rwkv", 4): (1.34, 6.99, 27.9, 0.09),
    ("tiny", "rwkv_mbconv", 4): (1.55, 8.08, 32.3, 0.23),
    ("small", "transformer", 2): (5.89, 39.88, 294.8, 0.00),
    ("small", "rwkv", 4): (6.69, 34.94, 139.8, 0.64),
    ("small", "rwkv", 2): (5.07, 26.49, 105.9, 0.64),
    ("small", "rwkv_trans", 4): (7.15, 39.98, 198.6, 0.46),
    ("small", "mbconv_rwkv", 4): (5.27, 27.53, 110.1, 0.18),
    ("small", "rwkv_mbconv", 4): (6.12, 31.98, 127.9, 0.46),
    ("base", "transformer", 2): (22.62, 136.42, 816.3, 0.00),
    ("base", "rwkv", 4): (26.65, 139.24, 557.0, 1.28),
    ("base", "rwkv", 2): (20.18, 105.42, 421.7, 1.28),
    ("base", "rwkv_trans", 4): (28.28, 152.93, 689.0, 0.91),
    ("base", "mbconv_rwkv", 4): (20.93, 109.33, 437.3, 0.36),
    ("base", "rwkv_mbconv", 4): (24.36, 127.28, 509.1, 0.91),
    ("large", "transformer", 2): (38.65, 226.22, 1265.7, 0.00),
    ("large", "rwkv", 4): (46.18, 241.25, 965.0, 1.70),
    ("large", "rwkv", 2): (34.67, 181.12, 724.5, 1.70),
    ("large", "rwkv_trans", 4): (48.96, 262.73, 1154.0, 1.22),
    ("large", "mbconv_rwkv", 4): (35.97, 187.94, 751.8, 0.49),
    ("large", "rwkv_mbconv", 4): (42.10, 219.93, 879.7, 1.22),
}
MIXERS = {
    "transformer": dict(mixer="attention"),
    "rwkv": dict(mixer="bi_wkv"),
    "rwkv_trans": dict(mixer="bi_wkv", pattern={"attention": ATTENTION_AT}),
    "mbconv_rwkv": dict(mixer="mbconv", pattern={"bi_wkv": ATTENTION_AT}),
    "rwkv_mbconv": dict(mixer="bi_wkv", pattern={"mbconv": ATTENTION_AT}),
}


def hybrid(arch: str, layout: str, mlp_ratio: float) -> HybridBackbone:
    with torch.device("meta"):
        return HybridBackbone(arch, mlp_ratio=mlp_ratio, **MIXERS[layout])


@pytest.mark.parametrize("row", RWKV_SAM, ids=lambda row: "-".join(map(str, row)))
def test_rwkv_sam(row):
    model = hybrid(*row)
    small, large = (count_macs(model, (1, 3, size, size)) for size in (224, 1024))
    middle = _interpolated(small.macs, large.macs, size=512)
    for macs, expected in zip((small.macs, middle, large.macs), RWKV_SAM[row], strict=False):
        assert macs / 1e9 == pytest.approx(expected, rel=0.01)
    assert large.scan_ops / 1e9 == pytest.approx(RWKV_SAM[row][3], abs=0.006)
    for count in (small, large):
        assert sum(count.by_stage().values()) == sum(count.by_operator.values()) == count.macs == count.flops // 2


def _interpolated(macs_224: int, macs_1024: int, *, size: int) -> float:
    """MACs at sizes divisible by 32 are a N + b N^2 for N tokens."""
    tokens = (size // 16) ** 2
    low, high = macs_224 / 14**2, macs_1024 / 64**2
    return tokens * (low + (high - low) * (tokens - 14**2) / (64**2 - 14**2))


@pytest.mark.parametrize("layout", ["transformer", "rwkv_mbconv"])
def test_the_middle_size_is_interpolated_exactly(layout):
    counts = [count_macs(hybrid("tiny", layout, 2), (1, 3, size, size)).macs for size in (224, 512, 1024)]
    assert _interpolated(counts[0], counts[2], size=512) == pytest.approx(counts[1], rel=1e-12)


def test_closed_form_per_token_layer():
    """N tokens, ratio r: RWKV N C^2 (5 + 2 r); attention N C^2 (4 + 3 r) + 2 N^2 C; MBConv N (2 r C^2 + 9 r C). Exactly, odd sizes too."""
    c, r, tokens = 192, 4, 8 * 10
    expected = {
        "bi_wkv": tokens * c * c * (5 + 2 * r),
        "attention": tokens * c * c * (4 + 3 * r) + 2 * tokens**2 * c,
        "mbconv": tokens * (2 * r * c * c + 9 * r * c),
    }
    for mixer, macs in expected.items():
        with torch.device("meta"):
            model = HybridBackbone("tiny", mixer, depth=1, mlp_ratio=r)
        assert count_macs(model, (1, 3, 120, 150)).by_stage()["layers"] == macs, mixer


# Tables of the papers and of their repositories, in units of 1e9, one decimal: (backbone, arch) -> (FLOPs, what ours is, written out).
VISION_RWKV = {"tiny": (1.2, 1.169), "small": (4.6, 4.593), "base": (18.2, 18.203)}
VRWKV6 = {"tiny": (1.6, 1.583), "small": (5.6, 5.594), "base": (20.9, 20.898)}
VMAMBA = {
    "tiny": (4.9, 4.906),
    "tiny_s2l5": (4.9, 4.858),
    "small": (8.7, 8.716),
    "base": (15.4, 15.359),
    "tiny_v0": (5.6, 5.627),
    "small_v0": (11.2, 11.231),
    "base_v0": (18.0, 18.020),
}
# What fvcore's handle gives, and the complete count.
VSSD = {"micro": (2.3, 2.306, 2.407), "tiny": (4.5, 4.475, 4.694), "small": (7.4, 7.366, 7.756), "base": (16.1, 16.066, 16.720)}
CLASSES = 1000


def backbone(name: str, arch: str, **options) -> nn.Module:
    with torch.device("meta"):
        return BACKBONES.build(dict(type=f"linescan.{name}", arch=arch, **options))


def agree(flops: float, published: float, ours: float) -> None:
    """Within 1 %, or as near as one printed decimal tells: 1.2 stands for anything from 1.15 to 1.25."""
    assert flops / 1e9 == pytest.approx(ours, abs=6e-4)
    assert flops / 1e9 == pytest.approx(published, rel=0.01, abs=0.05)


@pytest.mark.parametrize("arch", VISION_RWKV)
def test_vision_rwkv(arch):
    """MACs and 29 N C per layer."""
    model = backbone("VRWKV", arch)
    count = count_macs(model, (1, 3, 224, 224))
    assert count.scan_ops == 29 * 12 * 196 * model.out_channels[-1]
    agree(published_flops(count, "macs+scans") + CLASSES * model.out_channels[-1], *VISION_RWKV[arch])


def test_vision_rwkv_large_at_384():
    count = count_macs(backbone("VRWKV", "large"), (1, 3, 384, 384))
    assert published_flops(count, "macs+scans") / 1e9 == pytest.approx(189.5, rel=0.002)


@pytest.mark.parametrize("arch", VRWKV6)
def test_vrwkv6(arch):
    """The authors' sum, 14 N C^2 + 753 N C + 224 N per layer and 768 N C for the patches, has our MACs (448 of the 753) in it."""
    count = count_macs(backbone("VRWKV6", arch), (1, 3, 224, 224))
    n, c = 196, {"tiny": 192, "small": 384, "base": 768}[arch]
    assert count.macs == 12 * (14 * n * c * c + 448 * n * c) + 768 * n * c
    assert count.scan_ops == 12 * 640 * n * c
    agree(count.macs + 12 * (305 * n * c + 224 * n), *VRWKV6[arch])


@pytest.mark.parametrize("arch", VMAMBA)
def test_vmamba(arch):
    """MACs, 9 L D N + L D per scan, 5 per element of a layer norm; a classifier with a norm."""
    model = backbone("VMamba", arch, out_norm=False)
    flops = published_flops(count_macs(model, (1, 3, 224, 224)), "macs+scans+norms")
    agree(flops + (CLASSES + 5 * 49) * model.out_channels[-1], *VMAMBA[arch])


@pytest.mark.parametrize("arch", VSSD)
def test_vssd(arch):
    """The published sums are 4 to 5 % less than the complete count. fvcore's handle of matmul, which counts the products of all heads with
    B and C, which they share, as those of one head, gives them to the printed digit."""
    model = backbone("VSSD", arch, out_norm=False)
    count = count_macs(model, (1, 3, 224, 224))
    shared = {call: model.get_submodule(call.module).heads for call in count.calls if call.kind == "matmul"}
    lost = sum(call.macs - call.macs // shared[call] for call in count.calls if call in shared)
    complete = published_flops(count, "macs+scans+norms") + (CLASSES + 5 * 49) * model.out_channels[-1]
    published, as_fvcore, ours = VSSD[arch]
    assert complete / 1e9 == pytest.approx(ours, abs=6e-4)
    assert (complete - lost) / 1e9 == pytest.approx(as_fvcore, abs=6e-4)
    assert round(as_fvcore, 1) == published


@pytest.mark.parametrize(("arch", "published", "macs", "with_scans"), [("tiny", 1.5, 1.293, 1.819), ("small", 5.1, 4.852, 5.905)])
def test_vim_is_not_reproduced(arch, published, macs, with_scans):
    """LocalMamba's repository gives 1.5 and 5.1 G for Vim; ours, complete, are written down here."""
    model = backbone("Vim", arch)
    count = count_macs(model, (1, 3, 224, 224))
    classifier = CLASSES * model.out_channels[-1]
    assert (count.macs + classifier) / 1e9 == pytest.approx(macs, abs=6e-4)
    assert (published_flops(count, "macs+scans") + classifier) / 1e9 == pytest.approx(with_scans, abs=6e-4)
    assert macs < published < with_scans


def test_deit_small_is_4_608_with_its_norms():
    """4.599 G MACs with the classifier; fvcore adds 5 per element of 25 norms, and counts attention only with a handle."""
    model = timm.create_model("deit_small_patch16_224").eval()
    count = count_macs(model, (1, 3, 224, 224))
    attention = 12 * 2 * 197 * 197 * 384
    assert count.by_operator["attention"] == attention
    assert count.macs == 197 * 12 * 12 * 384**2 + attention + 196 * 768 * 384 + 384 * 1000 == 4_598_882_304
    assert published_flops(count, "macs+scans+norms") == count.macs + 5 * 25 * 197 * 384 == 4_608_338_304
    only_attention = {"aten::scaled_dot_product_attention": fvcore_handles()["aten::scaled_dot_product_attention"]}
    assert _fvcore(model, only_attention) == 4_608_338_304
    assert _fvcore(model, {}) == 4_608_338_304 - attention


def _fvcore(model: nn.Module, handles: dict) -> int:
    with torch.no_grad():
        analysis = FlopCountAnalysis(model, (torch.zeros(1, 3, 224, 224),)).set_op_handle(**handles)
        return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none").total()


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("swin_tiny_patch4_window7_224", 4.49), ("convnext_tiny", 4.45)])
def test_published_macs_of_other_families(name, gmacs):
    assert count_macs(timm.create_model(name), (1, 3, 224, 224)).macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_norms_cost_what_fvcore_says():
    norms = (
        nn.LayerNorm(8),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
    )
    for norm in norms:
        count = count_macs(norm, (2, 4, 6, 8))
        with torch.no_grad():
            assert count.norm_ops == FlopCountAnalysis(norm.eval(), (torch.ones(2, 4, 6, 8),)).total() > 0
        assert published_flops(count) == 0 and published_flops(count, "macs+scans+norms") == count.norm_ops


def test_conventions_are_named():
    assert {convention for convention, _ in PAPERS.values()} <= set(CONVENTIONS)
    count = count_macs(HybridBackbone("test", "ss2d", pattern={"bi_wkv": [1]}), (1, 3, 64, 64))
    lines = scan_conventions(count)
    assert len(lines) == 2 and any("29 B T C" in line for line in lines) and any("9 B L D N + B L D" in line for line in lines)
    assert published_flops(count) == count.macs and published_flops(count, "macs+scans") == count.macs + count.scan_ops


@pytest.mark.parametrize(("name", "message"), [("macs+scan", "Did you mean 'macs\\+scans'"), ("flops", "Known: macs, "), (None, "None")])
def test_unknown_convention(name, message):
    with pytest.raises(ValueError, match=f"convention: unknown .*{message}"):
        published_flops(count_macs(nn.Identity(), (1,)), name)
