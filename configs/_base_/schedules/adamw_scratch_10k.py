"""AdamW from random weights on a small data set, 10k iterations: a higher rate, stronger decay and clipped gradients."""

_base_ = "./adamw_160k.py"

optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys={"decode_head": dict(lr_mult=1.0), "auxiliary_head": dict(lr_mult=1.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=500, end=10000),
]
train_cfg = dict(max_iters=10000, val_interval=500)
