"""AdamW from random weights, 300 epochs: the recipe of DeiT (arXiv 2012.12877, table 9) without repeated augmentation.

As `adamw_300e`, but 5 epochs of warm-up and no clipping. The validated and saved weights are an exponential moving average.
"""

_base_ = "./adamw_300e.py"

optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
custom_hooks = [dict(type="ModelEmaHook", decay=0.9999)]
