"""Kvasir-SEG at 352x352, background and polyp. Trained on the train split, best checkpoint by val, tested on test.

Images are resized to a square, as polyp segmentation does since PraNet (arXiv 2006.11392); masks are compared at their own size.
Two logits per pixel: the answer is polyp where its probability is above 0.5. `data_root` follows the environment variable LINESCAN_DATA
(default: data/); docs/datasets.md says where to get the data.
"""

dataset_type = "KvasirDataset"
data_root = "{{$LINESCAN_DATA:data}}/kvasir"
num_classes = 2
crop_size = (352, 352)
# Cross-entropy and the Dice loss of the polyp; background is six times as large, and cross-entropy alone answers nothing else for long.
# DiceLoss of MMSegmentation needs two logits: of one, it takes the background as the target.
loss_decode = [
    dict(type="CrossEntropyLoss", loss_name="loss_ce", use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    dict(type="DiceLoss", loss_name="loss_dice", use_sigmoid=False, ignore_index=0, loss_weight=1.0),
]
scale = (352, 352)

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.25), keep_ratio=False),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomFlip", prob=0.5, direction="vertical"),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=scale, keep_ratio=False),
    # After Resize: the prediction is compared with the mask at its own size.
    dict(type="LoadCheckedAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(side, side), keep_ratio=False) for side in (256, 352, 448)],
            [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
            [dict(type="LoadCheckedAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="img_dir/test", seg_map_path="ann_dir/test"),
        pipeline=test_pipeline,
    ),
)
# mDice and mIoU over images, as polyp segmentation reports them; pixels/... is MMSegmentation's IoU, summed over all pixels first.
val_evaluator = [
    dict(type="PerImageOverlap", foreground="polyp"),
    dict(type="PerClassIoUMetric", iou_metrics=["mIoU"], prefix="pixels"),
]
test_evaluator = val_evaluator
