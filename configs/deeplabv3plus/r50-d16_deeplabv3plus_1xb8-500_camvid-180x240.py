"""CamVid at half size for a CPU: DeepLabV3+ with ResNet-50, output stride 16.

    python tools/train.py configs/deeplabv3plus/r50-d16_deeplabv3plus_1xb8-500_camvid-180x240.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/deeplabv3plus.py",
    "../_base_/datasets/camvid_180x240.py",
    "../_base_/schedules/adamw_scratch_500.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
