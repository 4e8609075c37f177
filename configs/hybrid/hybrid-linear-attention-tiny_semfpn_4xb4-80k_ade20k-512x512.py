"""ADE20K: the twin of hybrid-bi-wkv-tiny with linear attention in the token layers (Semantic FPN).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-linear-attention-tiny_semfpn_4xb4-80k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_semfpn_4xb4-80k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="linear_attention"))
