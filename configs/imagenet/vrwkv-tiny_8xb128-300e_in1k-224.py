"""ImageNet-1k: VRWKV tiny.

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/vrwkv-tiny_8xb128-300e_in1k-224.py

The published recipe: drop path 0.0, no mixup. Its label smoothing is not published; 0.1 is DeiT's.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime_classification.py",
]

model = dict(data_preprocessor=dict(mixup=None), backbone=dict(type="linescan.VRWKV", arch="tiny", drop_path_rate=0.0, out_indices=(11,)))
