"""Run-time settings of the classification configs: imports, hooks, logging. They hold on a CPU, on one GPU and on many."""

custom_imports = dict(imports=["linescan.backbones", "linescan.classification", "linescan.engine"], allow_failed_imports=False)
default_scope = "mmengine"

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=1, max_keep_ckpts=3, save_best="accuracy/top1", rule="greater"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
log_processor = dict(by_epoch=True)
log_level = "INFO"

visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
load_from = None
resume = False
