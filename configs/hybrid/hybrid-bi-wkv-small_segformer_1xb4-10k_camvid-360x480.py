"""CamVid: HybridBackbone small with Bi-WKV token layers and all-MLP head.

    python tools/train.py configs/hybrid/hybrid-bi-wkv-small_segformer_1xb4-10k_camvid-360x480.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_segformer.py",
    "../_base_/datasets/camvid_360x480.py",
    "../_base_/schedules/adamw_scratch_10k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="small"),
    decode_head=dict(num_classes=_base_.num_classes),
)
