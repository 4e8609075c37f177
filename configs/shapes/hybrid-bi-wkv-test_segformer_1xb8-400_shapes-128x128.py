"""Quickstart: the smallest HybridBackbone with Bi-WKV token layers on procedural shapes, about a minute on two CPU cores.

    python tools/train.py configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128.py

Status: measured once.
"""

_base_ = [
    "../_base_/models/hybrid_segformer_shapes.py",
    "../_base_/datasets/shapes_128x128.py",
    "../_base_/schedules/adamw_scratch_10k.py",
    "../_base_/default_runtime.py",
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=400),
]
train_cfg = dict(max_iters=400, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=25))
