"""CamVid at half size for a CPU: DeepLabV3+ with ResNet-18, output stride 16.

    python tools/train.py configs/deeplabv3plus/r18-d16_deeplabv3plus_1xb8-500_camvid-180x240.py

Status: measured once.
"""

_base_ = "./r50-d16_deeplabv3plus_1xb8-500_camvid-180x240.py"

model = dict(backbone=dict(depth=18), decode_head=dict(in_channels=512, channels=128, c1_in_channels=64, c1_channels=12))
