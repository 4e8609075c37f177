"""ADE20K: DeiT tiny with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/timm/deit-tiny_upernet_4xb4-160k_ade20k-512x512.py

MMSegmentation's recipe for DeiT with UPerHead: AdamW 6e-5, weight decay 0.01, 16 images, drop path 0.1; its neck resizes the four maps,
here they are upsampled by convolutions. Meant to start from timm's weights: --cfg-options model.backbone.pretrained=True.

Status: untrained.
"""

_base_ = [
    "../_base_/models/upernet_plain.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k_swin.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.TimmBackbone", model_name="deit_tiny", out_indices=(2, 5, 8, 11), drop_path_rate=0.1),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
