"""ADE20K: ConvNeXt tiny with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch --amp \
        configs/timm/convnext-tiny_upernet_4xb4-160k_ade20k-512x512.py

MMSegmentation's recipe for ConvNeXt with UPerHead: AdamW 1e-4, weight decay 0.05, drop path 0.4, mixed precision, a norm on every level.
Its layer decay of 0.9 counts three blocks as one layer; ours counts every block, so 0.965. Meant to start from timm's weights: --cfg-
options model.backbone.pretrained=True.

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
    backbone=dict(type="linescan.TimmBackbone", model_name="convnext_tiny", drop_path_rate=0.4, out_norm=True),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(layer_decay=0.965))
