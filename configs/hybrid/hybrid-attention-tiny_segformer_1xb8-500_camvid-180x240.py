"""CamVid at half size, 500 iterations: the transformer twin of hybrid-bi-wkv-tiny (softmax attention in the token layers).

    python tools/train.py configs/hybrid/hybrid-attention-tiny_segformer_1xb8-500_camvid-180x240.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py"

model = dict(backbone=dict(mixer="attention"))
