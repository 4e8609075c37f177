"""ImageClassifier on the last map of a backbone, 1000 classes, label smoothing, mixup and cutmix.

The family config names the backbone and its drop path rate.
"""

model = dict(
    type="ImageClassifier",
    num_classes=1000,
    label_smoothing=0.1,
    data_preprocessor=dict(mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch")),
)
