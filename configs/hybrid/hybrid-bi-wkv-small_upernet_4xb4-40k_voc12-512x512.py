"""Pascal VOC 2012: HybridBackbone small with Bi-WKV token layers and UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/hybrid/hybrid-bi-wkv-small_upernet_4xb4-40k_voc12-512x512.py

Status: untrained.
"""

_base_ = [
    "../_base_/models/hybrid_upernet.py",
    "../_base_/datasets/voc12_512x512.py",
    "../_base_/schedules/adamw_40k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch="small"),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
