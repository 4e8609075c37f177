"""Polyps in Kvasir-SEG, 500 iterations for a CPU: HybridBackbone tiny with Bi-WKV token layers, one logit per pixel, threshold 0.5.

    python tools/train.py configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb4-500_kvasir-352x352.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_segformer.py",
    "../_base_/datasets/kvasir_352x352.py",
    "../_base_/schedules/adamw_scratch_500.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="tiny"),
    decode_head=dict(num_classes=_base_.num_classes, out_channels=1, threshold=0.5, loss_decode=dict(use_sigmoid=True)),
)
default_hooks = dict(checkpoint=dict(interval=250))
