"""The all-MLP model for the shapes data: every level in the light head, auxiliary heads on both token levels, weight on the rare classes.

All heads are local. The auxiliary ones make the tokens carry what is near them, which the token layers then relate to far discs.
"""

_base_ = "./segformer.py"

# Of background, block, triangle, ring, thread, knot, linked disc, free disc. With class weights the loss is averaged over the weights
# of the pixels that count, and MMSegmentation refuses avg_non_ignore on top.
loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, class_weight=[1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
auxiliary_head = dict(
    type="FCNHead",
    channels=64,
    num_convs=1,
    kernel_size=1,
    concat_input=False,
    dropout_ratio=0.0,
    num_classes=8,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    align_corners=False,
    loss_decode={**loss, "loss_weight": 0.4},
)
model = dict(
    backbone=dict(type="linescan.HybridBackbone", arch="test", mixer="bi_wkv", mlp_ratio=2),
    decode_head=dict(in_index=[0, 1, 2, 3], channels=64, num_classes=8, loss_decode=dict(_delete_=True, **loss)),
    auxiliary_head=[dict(in_index=2, **auxiliary_head), dict(in_index=3, **auxiliary_head)],
)
