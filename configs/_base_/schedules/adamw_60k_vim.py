"""AdamW, 60k iterations of 32 images, layer decay 0.92: the public recipe of Vim (arXiv 2401.09417) with UPerHead."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor="LinescanOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=0.92),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=60000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=60000, val_interval=6000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
