"""CamVid: the transformer twin of hybrid-bi-wkv-tiny (softmax attention in the token layers, all-MLP head).

    python tools/train.py configs/hybrid/hybrid-attention-tiny_segformer_1xb4-10k_camvid-360x480.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb4-10k_camvid-360x480.py"

model = dict(backbone=dict(mixer="attention"))
