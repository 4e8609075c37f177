"""Pascal VOC 2012: the transformer twin of hybrid-bi-wkv-small (softmax attention in the token layers, UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-attention-small_upernet_4xb4-40k_voc12-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_upernet_4xb4-40k_voc12-512x512.py"

model = dict(backbone=dict(mixer="attention"))
