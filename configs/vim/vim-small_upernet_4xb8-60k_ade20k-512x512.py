"""ADE20K: Vim small with UPerHead.

    torchrun --nproc_per_node=4 tools/train.py --launcher pytorch \
        configs/vim/vim-small_upernet_4xb8-60k_ade20k-512x512.py

The recipe of the public training script of Vim (arXiv 2401.09417): AdamW 2e-4, weight decay 0.1, layer decay 0.92, 60k iterations of 32
images, tested in windows; drop path 0.1 is ours. Meant to start from the published ImageNet weights (docs/model_zoo.md); without them it
trains from scratch.

Status: untrained.
"""

_base_ = [
    "../_base_/models/upernet_plain.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_60k_vim.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type="linescan.Vim", arch="small", out_indices=(5, 11, 17, 23), drop_path_rate=0.1),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
    test_cfg=dict(mode="slide", crop_size=_base_.crop_size, stride=(341, 341)),
)
train_dataloader = dict(batch_size=8)
