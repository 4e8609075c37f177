"""ADE20K: the twin of hybrid-bi-wkv-small with the cross-scan SSD of Mamba-2 in the token layers (Semantic FPN).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-ssd-small_semfpn_4xb4-80k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_semfpn_4xb4-80k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="ssd"))
