"""ImageNet-1k: HybridBackbone tiny with Bi-WKV token layers.

    torchrun --nproc-per-node=8 tools/train.py --launcher pytorch \
        configs/imagenet/hybrid-bi-wkv-tiny_8xb128-300e_in1k-224.py

The schedule of RWKV-SAM's ImageNet pre-training; mixup, cutmix, label smoothing and drop path were not released and are DeiT's.

Status: untrained.
"""

_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/imagenet_224.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime_classification.py",
]

model = dict(backbone=dict(type="linescan.HybridBackbone", arch="tiny", mixer="bi_wkv", mlp_ratio=2, drop_path_rate=0.1, out_indices=(3,)))
