"""CamVid at half size, 500 iterations: the twin of hybrid-bi-wkv-tiny with MambaOut's gated convolution, the local control.

    python tools/train.py configs/hybrid/hybrid-gated-conv-tiny_segformer_1xb8-500_camvid-180x240.py

Status: measured once.
"""

_base_ = "./hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py"

model = dict(backbone=dict(mixer="gated_conv"))
