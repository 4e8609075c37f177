"""RWKV-SAM's official code (HarborYuan/ovsam, class VITAMINBackbone) in our terms: its constructor arguments and its parameter names."""

from collections.abc import Mapping, Sequence
from typing import Any

from .checkpoints import Family, register_family
from .names import choose, unknown

# attn_type of the official constructor -> main mixer, mixer of layers 2, 5, 8, 11.
_OFFICIAL_MIXERS = {
    "transformer": ("attention", None),
    "rwkv": ("bi_wkv", None),
    "rwkv_trans": ("bi_wkv", "attention"),
    "mbconv_rwkv": ("mbconv", "bi_wkv"),
    "rwkv_mbconv": ("bi_wkv", "mbconv"),
}
_OFFICIAL_DEPTH, _OFFICIAL_LAYERS = 14, (2, 5, 8, 11)


def hybrid_config(
    *,
    model_variant: str,
    attn_type: str,
    attn_cfg: Mapping[str, Any] | None = None,
    with_pos_embd: bool = True,
    img_size: int | Sequence[int] = (1024, 1024),
    additional_final_layers: bool = False,
) -> dict[str, Any]:
    """Arguments of `HybridBackbone` for those of the official VITAMINBackbone.

    Args:
        model_variant: tiny, small, base or large.
        attn_type: transformer, rwkv, rwkv_trans (attention at layers 2, 5, 8, 11 of RWKV), mbconv_rwkv (RWKV there, in MBConv) or
            rwkv_mbconv.
        attn_cfg: depth, mlp_ratio, num_heads, drop_path. In the official code `depth` breaks the three mixed types (it is read as the list
            of layers); here it is the depth, and of layers 2, 5, 8, 11 those below it are replaced.
        with_pos_embd: learn a position embedding.
        img_size: image size (h, w) in pixels that sizes the position embedding, one token per 16 pixels.
        additional_final_layers: the extra level at stride 32.

    Raises:
        ValueError: a value or a key of attn_cfg that the official code does not know.
    """
    main, other = choose(attn_type, _OFFICIAL_MIXERS, "attn_type")
    choose(model_variant, dict.fromkeys(("tiny", "small", "base", "large")), "model_variant")
    options = dict(attn_cfg or {})
    known = ("depth", "mlp_ratio", "num_heads", "drop_path")
    for key in options:
        if key not in known:
            raise ValueError(unknown(key, known, "key of attn_cfg"))
    depth = options.get("depth", _OFFICIAL_DEPTH)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return dict(
        arch=model_variant,
        mixer=main,
        pattern=None if other is None else {other: tuple(i for i in _OFFICIAL_LAYERS if i < depth)},
        depth=depth,
        mlp_ratio=options.get("mlp_ratio"),
        num_heads=options.get("num_heads"),
        drop_path_rate=options.get("drop_path", 0.0),
        pos_embed_size=(height // 16, width // 16) if with_pos_embd else None,
        extra_level=additional_final_layers,
    )


def vitamin_config(**official: Any) -> dict[str, Any]:
    """The config of our backbone for the official VITAMINBackbone's arguments; see `hybrid_config`."""
    return dict(type="linescan.HybridBackbone", **hybrid_config(**official))


_TAIL = r"\.(weight|bias)"
_MBCONV_PARTS = {"conv1_1x1": "expand", "conv2_kxk": "depthwise", "conv3_1x1": "project"}


def _mbconv_block_rules(official: str, ours: str) -> tuple[tuple[str, str], ...]:
    return (
        (official + r"\.shortcut(?:\.expand)?" + _TAIL, ours + r".shortcut.\g<2>"),
        (official + r"\.pre_norm" + _TAIL, ours + r".norm.\g<2>"),
        *((official + rf"\.{theirs}" + _TAIL, ours + rf".branch.{name}.\g<2>") for theirs, name in _MBCONV_PARTS.items()),
    )


_LAYER = r"layers\.(\d+)\."
register_family(
    "rwkvsam",
    Family(
        backbone="HybridBackbone",
        official={"VITAMINBackbone": vitamin_config},
        rules=(
            (r"pos_embed", "pos_embed"),
            (r"stem\.(conv1|conv2)" + _TAIL, r"stem.\1.\2"),
            (r"stem\.norm1" + _TAIL, r"stem.norm.\1"),
            *_mbconv_block_rules(r"conv_stages\.(\d+\.\d+)", r"stages.\g<1>"),
            (r"conv_final_pool\.(norm|proj)" + _TAIL, r"reduction.\1.\2"),
            (_LAYER + r"layer_scale_([12])", r"layers.\1.scale\2"),
            (_LAYER + r"(?:norm|ln)([12])" + _TAIL, r"layers.\1.norm\2.\3"),
            (_LAYER + r"attn\.spatial_(decay|first|mix_[kvr])", r"layers.\1.token.\2"),
            (_LAYER + r"attn\.(key|value|receptance|output|qkv|proj)" + _TAIL, r"layers.\1.token.\2.\3"),
            (_LAYER + r"mlp\.spatial_mix_([kr])", r"layers.\1.channel.mix_\2"),
            (_LAYER + r"mlp\.(key|receptance|value)" + _TAIL, r"layers.\1.channel.\2.\3"),
            *(
                (_LAYER + rf"ffn\.{theirs}" + _TAIL, rf"layers.\1.channel.{ours}.\2")
                for theirs, ours in (("w0", "gate"), ("w1", "up"), ("w2", "down"))
            ),
            (_LAYER + "pre_norm" + _TAIL, r"layers.\1.norm2.\2"),
            *((_LAYER + theirs + _TAIL, rf"layers.\1.channel.branch.{ours}.\2") for theirs, ours in _MBCONV_PARTS.items()),
            (r"final_norm" + _TAIL, r"final_norm.\1"),
            *_mbconv_block_rules("(final_layer)", "extra"),
        ),
        drop=(r"head\..*",),
    ),
)
