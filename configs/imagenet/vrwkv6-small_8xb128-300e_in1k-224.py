"""ImageNet-1k: VRWKV6 small.

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/vrwkv6-small_8xb128-300e_in1k-224.py

The recipe of VRWKV small: drop path 0.3, mixup 0.8, cutmix 1; label smoothing is DeiT's.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime_classification.py",
]

model = dict(backbone=dict(type="linescan.VRWKV6", arch="small", drop_path_rate=0.3, out_indices=(11,)))
