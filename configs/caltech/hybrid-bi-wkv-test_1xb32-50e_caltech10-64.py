"""Ten classes of Caltech-101: the smallest HybridBackbone with Bi-WKV token layers, two minutes on two CPU cores.

    python tools/train.py configs/caltech/hybrid-bi-wkv-test_1xb32-50e_caltech10-64.py

Status: measured once.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/caltech10_64.py",
    "../_base_/schedules/adamw_scratch_50e.py",
    "../_base_/runtime_classification.py",
]

model = dict(
    num_classes=_base_.num_classes,
    backbone=dict(type="linescan.HybridBackbone", arch="test", mixer="bi_wkv", mlp_ratio=2, out_indices=(3,)),
    data_preprocessor=dict(mixup=None),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=5))
