"""ADE20K: ResNet-50 with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/timm/resnet50_upernet_4xb4-160k_ade20k-512x512.py

MMSegmentation's recipe for ResNet with UPerHead: SGD 0.01, momentum 0.9, weight decay 5e-4, poly 0.9, 16 images; the warm-up of 1500
iterations is ours. A plain ResNet, not the dilated one with a deep stem. Meant to start from timm's weights: --cfg-options
model.backbone.pretrained=True.

Status: untrained.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/sgd_160k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.TimmBackbone", model_name="resnet50"),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
