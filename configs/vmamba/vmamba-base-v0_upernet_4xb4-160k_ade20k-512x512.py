"""ADE20K: VMamba base_v0 with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/vmamba/vmamba-base-v0_upernet_4xb4-160k_ade20k-512x512.py

The public recipe of Swin with UPerHead, which VMamba (arXiv 2401.10166) follows: AdamW 6e-5, weight decay 0.01, 16 images, whole-image
test; drop path 0.5 as in its classification. Meant to start from the published ImageNet weights (docs/model_zoo.md); without them it
trains from scratch.

Status: untrained.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k_swin.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.VMamba", arch="base_v0", drop_path_rate=0.5),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
