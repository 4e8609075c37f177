"""ADE20K: the twin of hybrid-bi-wkv-small with no token mixing, the control (UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-none-small_upernet_4xb4-160k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_upernet_4xb4-160k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="none"))
