"""ImageNet-1k: VMamba tiny (T[s1l8]).

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/vmamba-tiny_8xb128-300e_in1k-224.py

DeiT's recipe with averaged weights and the published drop path 0.2.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e_deit.py",
    "../_base_/runtime_classification.py",
]

model = dict(backbone=dict(type="linescan.VMamba", arch="tiny", drop_path_rate=0.2, out_indices=(3,)))
