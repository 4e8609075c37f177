"""AdamW from random weights, 300 epochs: the recipe of VRWKV and of RWKV-SAM's ImageNet pre-training.

Learning rate 1e-3 for a batch of 1024, weight decay 0.05 (norms, biases and one-dimensional parameters 0), gradients clipped at norm 5,
20 epochs of linear warm-up from a thousandth, cosine to 1 %.
"""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    constructor="LinescanOptimWrapperConstructor",
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
auto_scale_lr = dict(enable=False, base_batch_size=1024)
