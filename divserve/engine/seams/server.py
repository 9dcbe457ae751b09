"""Seams of the API process: the engine's client, and what starts and stops a server."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = ["SERVER_SEAMS"]

PROTOCOL = "vllm.engine.protocol:EngineClient"
ASYNC_LLM = "vllm.v1.engine.async_llm:AsyncLLM"
PROCESSOR = "vllm.v1.engine.output_processor:OutputProcessor"
CORE = "vllm.v1.engine.core_client:AsyncMPClient"
ARGS = "vllm.engine.arg_utils:AsyncEngineArgs"
ENTRY = "vllm.entrypoints.launchers.api_server.entry"

DEAD_RANKS = "divserve/engine/client/dead_ranks.py"
GONE = "divserve/engine/client/gone.py"
GUIDED = "divserve/engine/client/guided.py"
HALVES = "divserve/engine/client/half_characters.py"
HAND_OFF = "divserve/engine/client/hand_off.py"
LEDGER = "divserve/engine/client/ledger.py"
SEGMENTS = "divserve/engine/client/segments.py"
STATS = "divserve/engine/client/small_stats.py"
WATCHDOG = "divserve/engine/client/watchdog.py"
COMPAT = "divserve/engine/compat.py"
ENGINES = "divserve/startup/engines.py"
EXTRAS = "divserve/startup/extras.py"
HEADLESS = "divserve/startup/headless.py"
HOSTS = "divserve/startup/hosts.py"
LAUNCH = "divserve/startup/launch.py"
PROCESSES = "divserve/startup/processes.py"
SHUTDOWN = "divserve/startup/shutdown.py"

_CLIENT = (
    *seams(
        PROTOCOL, GUIDED, "copied",
        generate="checks and accounts for guided requests", shutdown="ends what is still open",
        dead_error="EngineStopped; vLLM's OpenAI layer knows the client by these names alone",
    ),
    *seams(PROTOCOL, GUIDED, "read", model_config="vocabularies and sizes of two models"),
    *seams(ASYNC_LLM, GUIDED, "called", generate="plain requests get its generator itself"),
    *seams(
        ASYNC_LLM, GUIDED, "read",
        errored="health", output_processor="see below", engine_core="see below",
        vllm_config="LoRA; rows, context and KV blocks",
    ),
    *seams(PROCESSOR, GUIDED, "patched", propagate_error="says what has happened to the engine"),
    *seams(PROCESSOR, GUIDED, "read", request_states="who is told of a drain or a dead engine"),
    *seams(
        "vllm.v1.engine.output_processor:RequestState", GUIDED, "read", queue="of a request",
    ),
    *seams(
        "vllm.v1.engine.output_processor:RequestOutputCollector", GUIDED, "called",
        put="an exception ends the request",
    ),
    *seams(CORE, GUIDED, "read", core_engines="number of data-parallel ranks"),
    *seams(PROCESSOR, DEAD_RANKS, "patched", process_outputs="an end that is no answer"),
    *seams(
        "vllm.v1.engine.core_client:BackgroundResources", DEAD_RANKS, "written",
        engine_dead="as soon as one rank is",
    ),
    *seams(
        "vllm.v1.engine.utils:CoreEngineProcManager", DEAD_RANKS, "read",
        failed_proc_name="whether a rank has died",
    ),
    *seams(CORE, GUIDED, "called", abort_requests_async="the engine drops what it ran"),
    *seams("vllm.outputs:RequestOutput", GUIDED, "read", outputs="get ``guidance`` and ``models``"),
    *seams("vllm.sampling_params:SamplingParams", GUIDED, "written", extra_args="without ours"),
    *seams(PROCESSOR, HALVES, "patched", add_request="primes the detokenizer anew"),
    *seams(PROCESSOR, HALVES, "read", request_states="the new request's"),
    *seams(
        "vllm.v1.engine.output_processor:RequestState", HALVES, "read",
        detokenizer="of a request",
    ),
    *seams(
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer", HALVES, "read",
        tokenizer="of the crate", skip_special_tokens="of a request",
    ),
    *seams(
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer", HALVES, "written",
        stream="begins with whole characters",
    ),
    *seams(
        PROCESSOR, LEDGER, "patched",
        add_request="learns the engine's ids of a request",
        process_outputs="takes statistics out before outputs are merged",
    ),
    *seams(
        CORE, HAND_OFF, "patched",
        add_request_async="starts a segment", abort_requests_async="ends a segment",
    ),
    *seams(
        PROCESSOR, HAND_OFF, "patched",
        process_outputs="a segment's outputs are its answer's",
        propagate_error="answers of a dead small engine go on",
    ),
    *seams(PROCESSOR, HAND_OFF, "read", request_states="answers that have not ended"),
    *seams(
        "vllm.v1.engine.output_processor:RequestState", HAND_OFF, "read",
        queue="of an answer that cannot go on",
    ),
    *seams(
        "vllm.v1.engine.output_processor:RequestOutputCollector", HAND_OFF, "called",
        put="an exception ends the answer",
    ),
    *seams(
        "vllm.v1.engine.output_processor:OutputProcessorOutput", HAND_OFF, "written",
        reqs_to_abort="segments instead of answers",
    ),
    *seams(
        ASYNC_LLM, HAND_OFF, "read",
        logger_manager="statistics of answers that the small engine makes",
        log_stats="whether there are any",
    ),
    *seams(
        "vllm.v1.engine:EngineCoreRequest", SEGMENTS, "written",
        request_id="of a segment", sampling_params="with the output so far",
    ),
    *seams(
        "vllm.v1.engine:EngineCoreOutput", SEGMENTS, "written",
        request_id="of the answer", events="of its first segment", finish_reason="none at a switch",
        stop_reason="none at a switch",
    ),
    *seams(
        "vllm.sampling_params:SamplingParams", SEGMENTS, "written",
        seed="another for each segment",
    ),
    *seams(
        "vllm.v1.metrics.loggers:StatLoggerBase", STATS, "overridden",
        __init__="gauges of the small engine", record="sets them",
        log_engine_initialized="nothing",
    ),
    *seams(
        CORE, WATCHDOG, "called",
        is_scheduler_paused_async="a question that the engine answers between two steps",
    ),
    *seams(CORE, WATCHDOG, "read", resources="see next", outputs_queue="ends the output handler"),
    *seams(
        "vllm.v1.engine.core_client:BackgroundResources", WATCHDOG, "written",
        engine_dead="an engine that hangs is dead",
    ),
    *seams(
        "vllm.v1.engine.core_client:BackgroundResources", WATCHDOG, "read",
        engine_manager="processes to end", coordinator="of data-parallel ranks",
    ),
    *seams("vllm.v1.engine.coordinator:DPCoordinator", WATCHDOG, "read", proc="must be alive"),
    *seams(
        "vllm.v1.engine.core_client:MPClient", WATCHDOG, "copied",
        start_engine_core_monitor="what vLLM does when an engine's process is gone",
    ),
    *seams("vllm.exceptions:GracefulHTTPError", GONE, "overridden", __init__="what a drain says"),
    *seams(
        "vllm.v1.engine.exceptions:EngineDeadError", GONE, "overridden",
        __init__="a 503 of its own for each request",
    ),
)  # fmt: skip

_STARTUP = (
    *seams(
        "vllm.entrypoints.launchers.cli_args", COMPAT, "called",
        make_arg_parser="vLLM's flags", validate_parsed_serve_args="what vLLM refuses",
    ),
    *seams(
        "vllm.entrypoints.serve.utils.api_utils", COMPAT, "called",
        cli_env_setup="the environment of a server",
    ),
    *seams(
        ENTRY, ENGINES, "copied",
        build_async_engine_client_from_engine_args="with our configuration, and two engines",
    ),
    *seams(
        ARGS, ENGINES, "called", create_engine_config="a configuration to put our classes into",
    ),
    *seams(
        ARGS, ENGINES, "written",
        _api_process_count="several API processes", _api_process_rank="which of them this one is",
        max_model_len="of the small engine",
    ),
    *seams(
        "vllm.config.scheduler:SchedulerConfig", ENGINES, "written",
        scheduler_cls="ours", async_scheduling="which of ours",
    ),
    *seams("vllm.config.parallel:ParallelConfig", ENGINES, "written", worker_cls="ours"),
    *seams(
        ASYNC_LLM, ENGINES, "called",
        from_vllm_config="starts an engine", reset_mm_cache="frees what start-up cached",
    ),
    *seams(
        "vllm.config.cache:CacheConfig", EXTRAS, "written",
        kv_cache_memory_bytes="a share of it", gpu_memory_utilization="a share of it",
    ),
    *seams(
        "vllm.config.load:LoadConfig", EXTRAS, "written",
        load_format="our loader", model_loader_extra_config="what it loads",
    ),
    *seams(
        ENTRY, LAUNCH, "copied",
        run_server_worker="what an API process does", build_and_serve="arguments of serve_http",
    ),
    *seams(
        "vllm.entrypoints.cli.serve", PROCESSES, "copied", run_multi_api_server="with our engine",
    ),
    *seams(
        ARGS, PROCESSES, "written",
        _api_process_count="several API processes", _api_process_rank="-1: their parent",
    ),
    *seams(
        "vllm.v1.engine.utils:CoreEngineProcManager", PROCESSES, "copied",
        monitor_engine_liveness="leaves the other ranks alone",
    ),
    *seams(
        "vllm.v1.engine.utils:CoreEngineProcManager", PROCESSES, "read",
        failed_proc_name="ours has one too", processes="watched",
    ),
    *seams(
        "vllm.v1.engine.core:EngineCoreProc", PROCESSES, "read",
        ENGINE_CORE_DEAD="tells the API processes of an engine that was killed",
    ),
    *seams(
        "vllm.v1.engine.utils:CoreEngineLaunch", PROCESSES, "written",
        watched_frontend_processes="ends the start if one of them ends",
        engine_manager="watched and stopped", tensor_queue="passed on",
    ),
    *seams(
        "vllm.v1.engine.utils:EngineZmqListeners", PROCESSES, "read",
        addresses="passed on", inputs="passed on", outputs="passed on",
    ),
    *seams(
        "vllm.v1.utils:APIServerProcessManager", PROCESSES, "called",
        __init__="starts API processes", shutdown="stops them",
    ),
    *seams("vllm.v1.utils:APIServerProcessManager", PROCESSES, "read", processes="signalled"),
    *seams("vllm.entrypoints.cli.serve", HEADLESS, "copied", run_headless="with our engines"),
    *seams(
        "vllm.v1.engine.utils:CoreEngineProcManager", HEADLESS, "called",
        __init__="starts a host's engines", monitor_engine_liveness="waits until one has died",
        shutdown="stops them",
    ),
    *seams(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor", HEADLESS, "called",
        __init__="starts a host's part of an engine",
        start_worker_monitor="waits until a worker has died", shutdown="stops them",
    ),
    *seams(
        "vllm.config.parallel:ParallelConfig", HEADLESS, "read",
        node_rank_within_dp="a part of an engine, or whole ones",
        data_parallel_rank="of the first engine", data_parallel_size_local="how many there are",
    ),
    *seams(
        "vllm.config.parallel:ParallelConfig", HOSTS, "read",
        local_engines_only="no other host, or each is a server",
        data_parallel_size="fewer on this host: there are others",
        data_parallel_size_local="likewise", nnodes="likewise, of one engine",
        data_parallel_master_ip="where hosts meet", data_parallel_rpc_port="the port below theirs",
        master_addr="where the hosts of one engine meet",
    ),
    *seams(
        "vllm.entrypoints.launchers.launcher", SHUTDOWN, "copied",
        serve_http="its signal handlers are replaced; ``app.state.server`` is uvicorn's",
    ),
)  # fmt: skip

SERVER_SEAMS: tuple[Seam, ...] = (*_CLIENT, *_STARTUP)
