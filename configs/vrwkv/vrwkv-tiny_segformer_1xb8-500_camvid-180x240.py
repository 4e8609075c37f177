"""CamVid at half size, 500 iterations from random weights: VRWKV tiny with the all-MLP head of SegFormer.

    python tools/train.py configs/vrwkv/vrwkv-tiny_segformer_1xb8-500_camvid-180x240.py

The recipe of hybrid-bi-wkv-tiny; the last map becomes a pyramid (SimpleFeaturePyramid).

Status: measured once.
"""

_base_ = [
    "../_base_/models/segformer_plain.py",
    "../_base_/datasets/camvid_180x240.py",
    "../_base_/schedules/adamw_scratch_500.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.VRWKV", arch="tiny", out_indices=(11,)),
    decode_head=dict(num_classes=_base_.num_classes),
)
default_hooks = dict(checkpoint=dict(interval=250))
