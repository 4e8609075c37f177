"""The schedule from random weights shortened to 1k iterations, what a CPU does in a quarter of an hour."""

_base_ = "./adamw_scratch_10k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=1000),
]
train_cfg = dict(max_iters=1000, val_interval=250)
