"""UPerHead for a plain backbone: its four maps at stride 16 become strides 4, 8, 16, 32 by up- and downsampling."""

_base_ = "./upernet.py"

model = dict(neck=dict(type="SimpleFeaturePyramid", norm_cfg=_base_.norm_cfg))
