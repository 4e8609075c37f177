"""Semantic FPN for a plain backbone: its last map, at stride 16, becomes strides 4, 8, 16, 32; then FPN and head."""

_base_ = "./semantic_fpn.py"

model = dict(neck=[dict(type="SimpleFeaturePyramid", norm_cfg=_base_.norm_cfg), dict(type="FPN", out_channels=256, num_outs=4)])
