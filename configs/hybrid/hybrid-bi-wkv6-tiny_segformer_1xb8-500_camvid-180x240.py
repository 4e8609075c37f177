"""CamVid at half size, 500 iterations: the twin of hybrid-bi-wkv-tiny with the Bi-WKV of RWKV-6.

    python tools/train.py configs/hybrid/hybrid-bi-wkv6-tiny_segformer_1xb8-500_camvid-180x240.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py"

model = dict(backbone=dict(mixer="bi_wkv6"))
