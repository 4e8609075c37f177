"""The all-MLP head of SegFormer (arXiv 2105.15203) on the four levels of a backbone, 128 channels; the config adds the backbone.

The head is local (1x1 convolutions and an upsampling): what a pixel knows of far ones, it knows from the backbone. `in_channels` come from
the backbone (PyramidEncoderDecoder). The config names `num_classes` and the crop.
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
    decode_head=dict(
        type="SegformerHead",
        in_index=[0, 1, 2, 3],
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
