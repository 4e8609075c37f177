"""HybridBackbone with the light head of Semantic FPN on strides 4, 8, 16, 32; `mlp_ratio` as in hybrid_upernet.py."""

_base_ = "./semantic_fpn.py"

model = dict(backbone=dict(type="linescan.HybridBackbone", arch="tiny", mixer="bi_wkv", mlp_ratio=2, extra_level=True))
