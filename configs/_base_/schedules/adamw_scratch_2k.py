"""The schedule from random weights for small models and images: 2k iterations at a high rate."""

_base_ = "./adamw_scratch_10k.py"

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=2000),
]
train_cfg = dict(max_iters=2000, val_interval=500)
