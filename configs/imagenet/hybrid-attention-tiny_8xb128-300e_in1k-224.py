"""ImageNet-1k: the transformer twin of hybrid-bi-wkv-tiny (softmax attention in the token layers).

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/hybrid-attention-tiny_8xb128-300e_in1k-224.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-tiny_8xb128-300e_in1k-224.py"

model = dict(backbone=dict(mixer="attention"))
