"""Polyps in Kvasir-SEG, 1000 iterations for a CPU: the transformer twin of hybrid-bi-wkv-tiny.

    python tools/train.py configs/hybrid/hybrid-attention-tiny_segformer_1xb4-1k_kvasir-352x352.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352.py"

model = dict(backbone=dict(mixer="attention"))
