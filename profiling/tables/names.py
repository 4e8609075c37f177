"""How the pages call what the rows name."""

import re

MIXERS = {
    "bi-wkv": "Bi-WKV",
    "bi_wkv": "Bi-WKV",
    "attention": "attention",
    "none": "none (control)",
    "gated-conv": "gated convolution (control)",
}
OPERATORS = {"bi_wkv": "Bi-WKV", "selective_scan": "selective scan, 16 states"}
BACKENDS = {"c": "C, built on first use", "torch": "PyTorch"}
# What a profile calls a model -> what a page calls it.
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
    "mobilenet-v2-d16_deeplabv3plus": "DeepLabV3+ MobileNetV2",
    "r18-d16_deeplabv3plus": "DeepLabV3+ ResNet-18",
    "r50-d16_deeplabv3plus": "DeepLabV3+ ResNet-50",
    "hybrid-bi-wkv-tiny_segformer": "hybrid tiny, Bi-WKV",
    "hybrid-attention-tiny_segformer": "hybrid tiny, attention",
}


def shown(name: str) -> str:
    return MODELS[re.sub(r"_\d+xb\d+-.*", "", name)]
