"""ADE20K: HybridBackbone tiny with Bi-WKV token layers and UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-bi-wkv-tiny_upernet_4xb4-160k_ade20k-512x512.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="tiny"),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
