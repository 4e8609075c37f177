"""ADE20K: VRWKV base in ViT-Adapter with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch --amp \
        configs/vrwkv/vrwkv-adapter-base_upernet_4xb4-160k_ade20k-512x512.py

The recipe published for Vision-RWKV (arXiv 2403.02308): AdamW 6e-5, weight decay 0.01, layer decay 0.8, drop path 0.3, mixed precision,
16 images, tested in windows of 512 at stride 341. Meant to start from the published ImageNet weights (configs/vrwkv/README.md says how);
without them it trains from scratch.

Status: untrained.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k_swin.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type="linescan.ViTAdapter",
        arch="base",
        backbone=dict(type="linescan.VRWKV", arch="base", final_norm=False),
        drop_path_rate=0.3,
    ),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
    test_cfg=dict(mode="slide", crop_size=_base_.crop_size, stride=(341, 341)),
)
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(layer_decay=0.8))
