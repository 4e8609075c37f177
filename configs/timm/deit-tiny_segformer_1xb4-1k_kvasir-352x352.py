"""Polyps in Kvasir-SEG, 1000 iterations for a CPU: DeiT tiny with the all-MLP head of SegFormer.

    python tools/train.py configs/timm/deit-tiny_segformer_1xb4-1k_kvasir-352x352.py

The recipe of hybrid-bi-wkv-tiny; the last map becomes a pyramid (SimpleFeaturePyramid).

Status: measured once.
"""

_base_ = [
    "../_base_/models/segformer_plain.py",
    "../_base_/datasets/kvasir_352x352.py",
    "../_base_/schedules/adamw_scratch_1k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.TimmBackbone", model_name="deit_tiny", out_indices=(11,)),
    decode_head=dict(num_classes=_base_.num_classes, loss_decode=_base_.loss_decode),
)
default_hooks = dict(checkpoint=dict(interval=250))
