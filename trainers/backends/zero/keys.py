"""The keys of DeepSpeed's JSON (0.19): which are passed on, which are refused and why. No torch."""

_WORDS: dict[type, str] = {
    bool: """
        allgather_partitions contiguous_gradients elastic_checkpoint ignore_unused_parameters
        load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear overlap_comm
        override_module_apply reduce_scatter round_robin_gradients stage3_allgather_sequential
        stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params
        use_multi_rank_bucket_allreduce zero_quantized_gradients
        zero_quantized_nontrainable_weights zero_quantized_weights
    """,
    int: """
        allgather_bucket_size reduce_bucket_size stage stage3_max_live_parameters
        stage3_max_reuse_distance stage3_module_granularity_threshold
        stage3_model_persistence_threshold stage3_param_persistence_threshold
        stage3_prefetch_bucket_size sub_group_size zero_hpz_partition_size
    """,
}
ZERO = {name: kind for kind, words in _WORDS.items() for name in words.split()}
"""Keys of `zero_optimization` that hold one value, and what kind."""

PASSED = frozenset(
    {
        "aio",
        "comms_logger",
        "communication_data_type",
        "dump_state",
        "flops_profiler",
        "log_level",
        "memory_breakdown",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)
"""Keys at the top that are passed on as they are."""

OFFLOAD: dict[str, type] = {
    **dict.fromkeys(("device", "nvme_path"), str),
    **dict.fromkeys(("pin_memory", "pipeline_read", "pipeline_write"), bool),
    **dict.fromkeys(("buffer_count", "buffer_size", "max_in_cpu"), int),
    "ratio": float,
}
"""Keys of `offload_optimizer` and `offload_param`."""

OPTIMIZER = frozenset({"lr", "betas", "eps", "weight_decay", "torch_adam"})

LOGGED_BY_RUNNER = "the runner logs by itself: drop it"
ANOTHER = "another checkpoint engine cannot save what a run continues from: drop it"
REFUSED = {
    "amp": "set model.dtype bfloat16 instead",
    "activation_checkpointing": "set backend.gradient_checkpointing instead",
    "autotuning": "it starts runs of its own: drop it",
    "checkpoint": ANOTHER,
    "datastates": ANOTHER,
    "nebula": ANOTHER,
    "comet": LOGGED_BY_RUNNER,
    "csv_monitor": LOGGED_BY_RUNNER,
    "tensorboard": LOGGED_BY_RUNNER,
    "wandb": "it would start a second run; log.wandb is ours: drop it",
    "compile": "it computes wrong gradients with overlap_comm: drop it",
    "compression_training": "it changes the model: drop it",
    "curriculum_learning": "the runner deals out the data: drop it",
    "data_efficiency": "the runner deals out the data: drop it",
    "disable_allgather": "weights would differ between ranks: drop it",
    "elasticity": "it would choose other batch sizes: drop it",
    "gradient_allreduce_op": "gradients are sums over ranks already: drop it",
    "gradient_predivide_factor": "gradients are sums over ranks already: drop it",
    "hybrid_engine": "its text is often wrong: drop it",
    "pipeline": "models are not split into stages: drop it",
    "prescale_gradients": "gradients are sums over ranks already: drop it",
    "progressive_layer_drop": "it changes the model: drop it",
    "quantize_training": "it changes the model: drop it",
    "scheduler": "set ppo.lr_schedule and ppo.warmup_fraction instead",
    "sparse_attention": "set model.attention instead",
    "sparse_gradients": "gradients are dense: drop it",
    "tensor_parallel": "models are not split inside layers: drop it",
    "torch_autocast": "set model.dtype bfloat16 instead",
    "zero_optimization.compute_grad_norm": "the norm is clipped by and logged: drop it",
    "zero_optimization.cpu_offload": "set backend.zero.offload instead",
    "zero_optimization.cpu_offload_param": "set backend.zero.offload instead",
    "zero_optimization.offload_optimizer.fast_init": "some disks read wrong weights by it: drop it",
    "zero_optimization.zenflow": "it steps with stale gradients: drop it",
}
"""What a file may not say, and what to do instead."""

DEEPSPEED_SECTIONS = ("bf16", "fp16", "data_types", "optimizer", "zero_optimization")
TOP = PASSED | {key for key in REFUSED if "." not in key} | {*DEEPSPEED_SECTIONS}
