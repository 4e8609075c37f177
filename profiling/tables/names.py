"""How the pages call what the rows name."""

import re

# Token mixers, in the order of a table's lines.
MIXERS = {
    "bi_wkv": "Bi-WKV",
    "attention": "attention",
    "bi_wkv6": "WKV6",
    "ss2d": "SS2D",
    "ssd": "SSD",
    "linear_attention": "linear attention",
    "gated_conv": "gated convolution (control)",
    "none": "none (control)",
}
ARCHS = ("test", "femto", "micro", "kobe", "tiny", "small", "base", "large")
# How a config's name begins -> the network.
NETWORKS = {
    "vrwkv": "VRWKV",
    "vrwkv6": "VRWKV6",
    "vim": "Vim",
    "vmamba": "VMamba",
    "vssd": "VSSD",
    "deit": "DeiT",
    "deit3": "DeiT-III",
    "swin": "Swin",
    "convnext": "ConvNeXt",
    "vitamin": "ViTamin",
    "mambaout": "MambaOut",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "mobilenet-v2-d16": "MobileNetV2",
    "r18-d16": "ResNet-18",
    "r50-d16": "ResNet-50",
}
_NETWORK = re.compile(rf"(?P<family>.+?)(?P<adapter>-adapter)?(-(?P<arch>{'|'.join(ARCHS)})(-(?P<variant>[a-z]\d))?)?")
_HYBRID = re.compile(rf"hybrid-(?P<mixer>.+)-(?P<arch>{'|'.join(ARCHS)})")
OPERATORS = {"bi_wkv": "Bi-WKV", "selective_scan": "selective scan, 16 states"}
BACKENDS = {"c": "C, built on first use", "torch": "PyTorch"}
# What a profile calls a model that is no config -> what a page calls it.
MODELS = {
    "timm:deit_small": "DeiT-S",
    "timm:swin_tiny": "Swin-T",
    "timm:convnext_tiny": "ConvNeXt-T",
    "timm:mambaout_tiny": "MambaOut-T",
    "vrwkv:small": "VRWKV small",
    "vrwkv6:small": "VRWKV6 small",
    "vim:small": "Vim small",
    "vmamba:tiny": "VMamba tiny",
    "vssd:tiny": "VSSD tiny",
    "hybrid:small:bi_wkv": "hybrid small, Bi-WKV, MLP ratio 4",
    "hybrid:small:attention": "hybrid small, attention, MLP ratio 2",
}


def shown(name: str) -> str:
    """What a page calls a model of a profile: a backbone by its name in `MODELS`, a config by its backbone, DeepLabV3+ with its own."""
    if name in MODELS:
        return MODELS[name]
    backbone, head, *_ = name.split("_")
    return f"DeepLabV3+ {backbone_of(backbone)}" if head == "deeplabv3plus" else backbone_of(backbone)


def mixer_of(name: str) -> str | None:
    """The token mixer, as pages call it, of hybrid:<arch>:<mixer> or of a config hybrid-<mixer>-<arch>_...; None for another network."""
    family, *rest = name.split(":")
    if family == "hybrid":
        return MIXERS[rest[1]]
    found = _HYBRID.fullmatch(name.split("_")[0])
    return MIXERS[found["mixer"].replace("-", "_")] if found else None


def backbone_of(name: str) -> str:
    """The backbone of a config, from the first part of its name: "hybrid-bi-wkv-tiny" -> "hybrid tiny, Bi-WKV".

    Raises:
        ValueError: a name that tells of no known network.
    """
    if found := _HYBRID.fullmatch(name):
        return f"hybrid {found['arch']}, {MIXERS[found['mixer'].replace('-', '_')]}"
    found = _NETWORK.fullmatch(name)
    if found["family"] not in NETWORKS:
        raise ValueError(f"name of a config: expected hybrid-<mixer>-<arch> or one that begins with {', '.join(NETWORKS)}, got {name!r}")
    parts = [NETWORKS[found["family"]], *(part for part in (found["arch"], found["variant"]) if part)]
    return " ".join(parts) + (", ViT-Adapter" if found["adapter"] else "")


def place(name: str) -> tuple[int, int, int]:
    """Where a config's backbone stands in a table: by family, architecture, mixer."""
    hybrid, found = _HYBRID.fullmatch(name), _NETWORK.fullmatch(name)
    if hybrid:
        return -1, ARCHS.index(hybrid["arch"]), list(MIXERS).index(hybrid["mixer"].replace("-", "_"))
    return list(NETWORKS).index(found["family"]), ARCHS.index(found["arch"]) if found["arch"] else 0, len(found["variant"] or "")
