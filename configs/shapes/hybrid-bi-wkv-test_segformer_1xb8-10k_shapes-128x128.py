"""Far context: the smallest HybridBackbone with Bi-WKV token layers learns which discs are linked, about 15 minutes on two CPU cores.

    python tools/train.py configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-10k_shapes-128x128.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_segformer_shapes.py",
    "../_base_/datasets/shapes_128x128.py",
    "../_base_/schedules/adamw_scratch_10k.py",
    "../_base_/default_runtime.py",
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
train_dataloader = dict(dataset=dict(length=6000))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=1000))
