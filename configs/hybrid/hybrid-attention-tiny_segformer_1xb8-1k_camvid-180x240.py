"""CamVid at half size for a CPU: the transformer twin of hybrid-bi-wkv-tiny (softmax attention in the token layers, all-MLP head).

    python tools/train.py configs/hybrid/hybrid-attention-tiny_segformer_1xb8-1k_camvid-180x240.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb8-1k_camvid-180x240.py"

model = dict(backbone=dict(mixer="attention"))
