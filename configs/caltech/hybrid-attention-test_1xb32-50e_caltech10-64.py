"""Ten classes of Caltech-101: the transformer twin of hybrid-bi-wkv-test (softmax attention in the token layers).

    python tools/train.py configs/caltech/hybrid-attention-test_1xb32-50e_caltech10-64.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-test_1xb32-50e_caltech10-64.py"

model = dict(backbone=dict(mixer="attention"))
