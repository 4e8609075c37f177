"""Long-range context measured: the transformer twin of hybrid-bi-wkv-test (softmax attention in the token layers).

    python tools/train.py configs/shapes/hybrid-attention-test_segformer_1xb8-2k_shapes-192x192.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-test_segformer_1xb8-2k_shapes-192x192.py"

model = dict(backbone=dict(mixer="attention"))
