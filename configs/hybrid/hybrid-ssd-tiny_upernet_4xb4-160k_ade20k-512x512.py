"""ADE20K: the twin of hybrid-bi-wkv-tiny with the cross-scan SSD of Mamba-2 in the token layers (UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-ssd-tiny_upernet_4xb4-160k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_upernet_4xb4-160k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="ssd"))
