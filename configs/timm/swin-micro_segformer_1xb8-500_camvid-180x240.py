"""CamVid at half size, 500 iterations from random weights: Swin at half the width of tiny with the all-MLP head of SegFormer.

    python tools/train.py configs/timm/swin-micro_segformer_1xb8-500_camvid-180x240.py

The recipe of hybrid-bi-wkv-tiny; a norm on every level, as in MMSegmentation.
A size of our own, 6.0 M parameters, for want of a published one.

Status: measured once.
"""

_base_ = [
    "../_base_/models/segformer.py",
    "../_base_/datasets/camvid_180x240.py",
    "../_base_/schedules/adamw_scratch_500.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.TimmBackbone", model_name="swin_micro", out_norm=True),
    decode_head=dict(num_classes=_base_.num_classes),
)
default_hooks = dict(checkpoint=dict(interval=250))
