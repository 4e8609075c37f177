"""ADE20K: the twin of hybrid-bi-wkv-small with MambaOut's gated convolution, the local control (UPerHead).

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-gated-conv-small_upernet_4xb4-160k_ade20k-512x512.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-small_upernet_4xb4-160k_ade20k-512x512.py"

model = dict(backbone=dict(mixer="gated_conv"))
