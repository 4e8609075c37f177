"""Long-range context measured: the smallest HybridBackbone with Bi-WKV token layers on larger procedural shapes.

    python tools/train.py configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-2k_shapes-192x192.py

Status: measured once.
"""

_base_ = [
    "../_base_/models/hybrid_segformer_shapes.py",
    "../_base_/datasets/shapes_192x192.py",
    "../_base_/schedules/adamw_scratch_2k.py",
    "../_base_/default_runtime.py",
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
default_hooks = dict(checkpoint=dict(interval=500))
