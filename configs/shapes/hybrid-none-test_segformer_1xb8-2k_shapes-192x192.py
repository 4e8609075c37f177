"""Long-range context measured: the control whose token layers mix no tokens, so that it cannot tell linked from free discs.

    python tools/train.py configs/shapes/hybrid-none-test_segformer_1xb8-2k_shapes-192x192.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-test_segformer_1xb8-2k_shapes-192x192.py"

model = dict(backbone=dict(mixer="none"))
