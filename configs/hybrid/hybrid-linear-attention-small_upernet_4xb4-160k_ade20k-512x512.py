"""ADE20K: the twin of hybrid-bi-wkv-small with linear attention in the token layers (UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-linear-attention-small_upernet_4xb4-160k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_upernet_4xb4-160k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="linear_attention"))
