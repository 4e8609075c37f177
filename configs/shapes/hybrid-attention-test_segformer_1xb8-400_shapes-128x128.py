"""Quickstart: the transformer twin of hybrid-bi-wkv-test (softmax attention in the token layers) on procedural shapes.

    python tools/train.py configs/shapes/hybrid-attention-test_segformer_1xb8-400_shapes-128x128.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128.py"

model = dict(backbone=dict(mixer="attention"))
