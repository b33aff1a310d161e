# Run-time defaults of all configs: hooks, logging, process start.
default_scope = "mmdet3d"
custom_imports = dict(imports=["raggedbev.mm.streampetr", "raggedbev.mm.hooks"], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type="DeferredRuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="AtomicCheckpointHook", by_epoch=False, interval=1000, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="Det3DVisualizationHook"),
)
custom_hooks = [
    dict(type="CheckpointMatchHook"),
    dict(type="NonFiniteWarningHook", interval=50),
]

env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Det3DLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
