"""Procedural shapes at 128x128, rendered on first use into $LINESCAN_DATA/shapes (default data/shapes): 1500 / 100 / 300 images.

No photometric augmentation: a disc is linked or free by a thread of its own hue.
"""

dataset_type = "ShapesDataset"
cache_dir = "{{$LINESCAN_DATA:data}}/shapes"
num_classes = 8
crop_size = (128, 128)

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomFlip", prob=0.5, direction="vertical"),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadCheckedImage"), dict(type="LoadCheckedAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type=dataset_type, split="train", length=1500, size=crop_size, cache_dir=cache_dir, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, split="val", length=100, size=crop_size, cache_dir=cache_dir, pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, split="test", length=300, size=crop_size, cache_dir=cache_dir, pipeline=test_pipeline),
)
val_evaluator = [
    dict(type="PerClassIoUMetric", iou_metrics=["mIoU"]),
    dict(type="ClassPairAccuracy", classes=("linked disc", "free disc")),
]
test_evaluator = val_evaluator
