"""ImageNet-1k (ILSVRC 2012) in class folders, 1000 classes, 224x224: RandAugment, random erasing; tested at 256, centre crop 224.

`data_root` follows the environment variable LINESCAN_DATA (default: data/): `imagenet/train/<class>/` and `imagenet/val/<class>/`.
"""

dataset_type = "ImageFolderDataset"
data_root = "{{$LINESCAN_DATA:data}}/imagenet"
num_classes = 1000
input_size = 224

train_pipeline = [
    dict(type="LoadPILImage"),
    dict(
        type="TimmTransform",
        input_size=input_size,
        training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
    ),
    dict(type="PackClassInputs"),
]
test_pipeline = [
    dict(type="LoadPILImage"),
    dict(type="TimmTransform", input_size=input_size, interpolation="bicubic", crop_pct=0.875),
    dict(type="PackClassInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,  # mixup needs batches of an even size
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="val", pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy", topk=(1, 5))
test_evaluator = val_evaluator
