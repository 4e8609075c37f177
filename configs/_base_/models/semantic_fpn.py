"""The light head of Semantic FPN (arXiv 1901.02446) on the four levels of a backbone: an FPN of 256 channels, 128 in the head.

`in_channels` come from the backbone (PyramidEncoderDecoder). The config names `num_classes` and the crop, and `feature_strides` where the
levels are not at strides 4, 8, 16, 32.
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="PyramidEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    neck=[dict(type="FPN", out_channels=256, num_outs=4)],
    decode_head=dict(
        type="FPNHead",
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
