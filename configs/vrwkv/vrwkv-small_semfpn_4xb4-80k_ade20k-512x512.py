"""ADE20K: VRWKV small with the light head of Semantic FPN.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/vrwkv/vrwkv-small_semfpn_4xb4-80k_ade20k-512x512.py

The recipe of PVT with Semantic FPN (arXiv 2102.12122), the same for every backbone here. Meant to start from the published ImageNet
weights (docs/model_zoo.md); without them it trains from scratch.

Status: untrained.
"""

_base_ = [
    "../_base_/models/semantic_fpn_plain.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_80k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.VRWKV", arch="small", out_indices=(11,), drop_path_rate=0.2),
    decode_head=dict(num_classes=_base_.num_classes),
)
