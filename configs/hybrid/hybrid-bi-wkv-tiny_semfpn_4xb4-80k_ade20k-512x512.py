"""ADE20K: HybridBackbone tiny with bi_wkv token layers with the light head of Semantic FPN.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-bi-wkv-tiny_semfpn_4xb4-80k_ade20k-512x512.py

The recipe of PVT with Semantic FPN (arXiv 2102.12122), the same for every backbone here. The same network for every mixer.

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_semantic_fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_80k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="tiny"),
    decode_head=dict(num_classes=_base_.num_classes),
)
