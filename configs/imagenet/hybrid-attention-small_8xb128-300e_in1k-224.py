"""ImageNet-1k: the transformer twin of hybrid-bi-wkv-small (softmax attention in the token layers).

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/hybrid-attention-small_8xb128-300e_in1k-224.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_8xb128-300e_in1k-224.py"

model = dict(backbone=dict(mixer="attention"))
