"""ADE20K: MambaOut base with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/timm/mambaout-base_upernet_4xb4-160k_ade20k-512x512.py

The recipe of Swin with UPerHead: AdamW 6e-5, weight decay 0.01, 16 images; drop path 0.4 is ours. Meant to start from timm's weights:
--cfg-options model.backbone.pretrained=True.

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
    backbone=dict(type="linescan.TimmBackbone", model_name="mambaout_base", drop_path_rate=0.4),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
