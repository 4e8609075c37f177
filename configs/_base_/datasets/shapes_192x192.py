"""Procedural shapes at 192x192: 3000 / 100 / 300 images."""

_base_ = "./shapes_128x128.py"

crop_size = (192, 192)
train_dataloader = dict(dataset=dict(length=3000, size=crop_size))
val_dataloader = dict(dataset=dict(size=crop_size))
test_dataloader = dict(dataset=dict(size=crop_size))
