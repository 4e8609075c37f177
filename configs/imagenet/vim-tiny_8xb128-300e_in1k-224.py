"""ImageNet-1k: Vim tiny, classified on its middle class token.

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/vim-tiny_8xb128-300e_in1k-224.py

DeiT's recipe with averaged weights, drop path 0.1.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e_deit.py",
    "../_base_/runtime_classification.py",
]

model = dict(pool="class_token", backbone=dict(type="linescan.Vim", arch="tiny", drop_path_rate=0.1, out_indices=(23,)))
