"""CamVid at half size, 500 iterations: the twin of hybrid-bi-wkv-tiny with Mamba-2's SSD.

    python tools/train.py configs/hybrid/hybrid-ssd-tiny_segformer_1xb8-500_camvid-180x240.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py"

model = dict(backbone=dict(mixer="ssd"))
