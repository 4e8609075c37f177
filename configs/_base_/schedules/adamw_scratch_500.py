"""The schedule from random weights shortened to 500 iterations, for tables of many networks on a CPU."""

_base_ = "./adamw_scratch_10k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=500),
]
train_cfg = dict(max_iters=500, val_interval=250)
