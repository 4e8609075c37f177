"""Far context, the control: token layers that mix no tokens, so that nothing beyond the convolutions' reach can tell linked from free.

    python tools/train.py configs/shapes/hybrid-none-test_segformer_1xb8-10k_shapes-128x128.py

Status: untrained.
"""

_base_ = "./hybrid-bi-wkv-test_segformer_1xb8-10k_shapes-128x128.py"

model = dict(backbone=dict(mixer="none"))
