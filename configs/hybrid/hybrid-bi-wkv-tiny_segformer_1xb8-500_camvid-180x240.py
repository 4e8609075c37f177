"""CamVid at half size, 500 iterations for tables of many networks on a CPU: HybridBackbone tiny with Bi-WKV token layers and all-MLP head.

    python tools/train.py configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py

Status: measured once.
"""

_base_ = [
    "../_base_/models/hybrid_segformer.py",
    "../_base_/datasets/camvid_180x240.py",
    "../_base_/schedules/adamw_scratch_500.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="tiny"),
    decode_head=dict(num_classes=_base_.num_classes),
)
default_hooks = dict(checkpoint=dict(interval=250))
