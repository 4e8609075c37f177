"""ImageNet-1k: VRWKV6 tiny.

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/vrwkv6-tiny_8xb128-300e_in1k-224.py

The recipe of VRWKV tiny: drop path 0.0, no mixup; label smoothing is DeiT's.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime_classification.py",
]

model = dict(data_preprocessor=dict(mixup=None), backbone=dict(type="linescan.VRWKV6", arch="tiny", drop_path_rate=0.0, out_indices=(11,)))
