"""Ten classes of Caltech-101, 600 training images, 64x64; for training on a CPU in minutes.

`data_root` follows the environment variable LINESCAN_DATA (default: data/); docs/datasets.md says where to get the data.
"""

dataset_type = "ImageFolderDataset"
data_root = "{{$LINESCAN_DATA:data}}/caltech10"
classes = "manifest.json"
num_classes = 10
input_size = 64

train_pipeline = [
    dict(type="LoadPILImage"),
    dict(type="TimmTransform", input_size=input_size, training=True, scale=(0.35, 1.0), interpolation="bilinear", color_jitter=0.3),
    dict(type="PackClassInputs"),
]
test_pipeline = [
    dict(type="LoadPILImage"),
    dict(type="TimmTransform", input_size=input_size, interpolation="bilinear", crop_pct=1.0),
    dict(type="PackClassInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="train", classes=classes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="val", classes=classes, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="test", classes=classes, pipeline=test_pipeline, test_mode=True),
)
val_evaluator = dict(type="TopKAccuracy", topk=(1, 3))
test_evaluator = val_evaluator
