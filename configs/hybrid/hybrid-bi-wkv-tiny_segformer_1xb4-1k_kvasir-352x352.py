"""Polyps in Kvasir-SEG, 1000 iterations for a CPU: HybridBackbone tiny with Bi-WKV token layers and all-MLP head.

    python tools/train.py configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352.py

Status: measured once.
"""

_base_ = [
    "../_base_/models/hybrid_segformer.py",
    "../_base_/datasets/kvasir_352x352.py",
    "../_base_/schedules/adamw_scratch_1k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="tiny"),
    decode_head=dict(num_classes=_base_.num_classes, loss_decode=_base_.loss_decode),
)
default_hooks = dict(checkpoint=dict(interval=250))
