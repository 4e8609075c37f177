"""Polyps in Kvasir-SEG, 1000 iterations for a CPU: the twin of hybrid-bi-wkv-tiny without token mixing, the control.

    python tools/train.py configs/hybrid/hybrid-none-tiny_segformer_1xb4-1k_kvasir-352x352.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352.py"

model = dict(backbone=dict(mixer="none"))
