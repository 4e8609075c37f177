"""CamVid at half size for a CPU: DeepLabV3+ with MobileNetV2, output stride 16.

    python tools/train.py configs/deeplabv3plus/mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240.py

Status: measured once.
"""

_base_ = "./r50-d16_deeplabv3plus_1xb8-500_camvid-180x240.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        widen_factor=1.0,
        strides=(1, 2, 2, 2, 1, 1, 1),
        dilations=(1, 1, 1, 1, 1, 2, 2),
        out_indices=(1, 2, 4, 6),
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(in_channels=320, c1_in_channels=24),
)
