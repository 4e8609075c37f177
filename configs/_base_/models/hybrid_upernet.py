"""HybridBackbone with UPerHead on strides 4, 8, 16, 32 and an auxiliary FCN head on stride 16.

The family config names `arch`, `num_classes` and the crop. `mlp_ratio` is written out because its default depends on the mixer: with it,
twins differ in the mixer alone.
"""

_base_ = "./upernet.py"

model = dict(backbone=dict(type="linescan.HybridBackbone", arch="tiny", mixer="bi_wkv", mlp_ratio=2, extra_level=True))
