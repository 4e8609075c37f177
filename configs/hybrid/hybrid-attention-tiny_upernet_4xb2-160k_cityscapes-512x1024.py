"""Cityscapes: the transformer twin of hybrid-bi-wkv-tiny (softmax attention in the token layers, UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-attention-tiny_upernet_4xb2-160k_cityscapes-512x1024.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_upernet_4xb2-160k_cityscapes-512x1024.py"

model = dict(backbone=dict(mixer="attention"))
