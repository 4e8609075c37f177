"""The all-MLP head for a plain backbone: its last map, at stride 16, becomes strides 4 and 8 by transposed convolutions.

The head takes strides 4, 8 and 16, as it does of HybridBackbone; stride 32 would be the same map pooled.
"""

_base_ = "./segformer.py"

model = dict(neck=dict(type="SimpleFeaturePyramid", norm_cfg=_base_.norm_cfg), decode_head=dict(in_index=[0, 1, 2]))
