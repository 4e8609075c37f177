"""HybridBackbone with the all-MLP head of SegFormer on strides 4, 8 and the final stride-16 tokens.

The family config names `arch`, `num_classes` and the crop. `mlp_ratio` is written out because its default depends on the mixer.
"""

_base_ = "./segformer.py"

model = dict(
    backbone=dict(type="linescan.HybridBackbone", arch="tiny", mixer="bi_wkv", mlp_ratio=2),
    decode_head=dict(in_index=[0, 1, 3]),
)
