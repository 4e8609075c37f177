"""Run-time settings that every config shares: imports, hooks, logging, visualisation. They hold on a CPU, on one GPU and on many."""

custom_imports = dict(imports=["linescan.backbones", "linescan.segmentation", "linescan.engine"], allow_failed_imports=False)
default_scope = "mmseg"

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2000, max_keep_ckpts=3, save_best="mIoU"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="PredictionPicturesHook", num_images=4),
)
log_processor = dict(by_epoch=False)
log_level = "INFO"

visualizer = dict(
    type="SegLocalVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
tta_model = dict(type="SegTTAModel")
load_from = None
resume = False
