"""Everything that touches vLLM 0.32.0; no other package of divserve imports it.

Each seam, once (paths under ``vllm/``; checked at start-up by `divserve.startup.checks`):

| seam | what we do there | file |
|---|---|---|
| ``Scheduler.add_request`` | make the other rows of a request | admission.py |
| ``Scheduler._handle_blocked_waiting_request`` | admit all members or none | admission.py |
| ``Scheduler._get_local_prefix_cache_hit`` | leave a token before the held one | admission.py |
| ``Scheduler._reserve_prefill_lookahead`` | hold members one token back | admission.py |
| ``Scheduler.schedule``, ``_pause_state`` | release, join, preempt whole groups | scheduler.py |
| ``KVCacheCoordinator.get_num_blocks_to_allocate`` | need of the coming step | preflight.py |
| ``Scheduler._preempt_request`` | preempt all members together | preflight.py |
| ``Scheduler.update_from_output``, ``grammar_compile_error_reqs`` | report, fail | scheduler.py |
| ``Scheduler._free_request``, ``finish_requests`` | end members together | ending.py |
| ``Scheduler._update_request_with_output`` | end a segment where its rule says | switching.py |
| ``Request.append_output_token_ids``, ``prefill_stats`` | continue an answer | switching.py |
| ``StructuredOutputManager.accept_tokens`` | a grammar reads the answer so far | switching.py |
| ``EngineCoreOutput.kv_transfer_params`` | statistics to the front end | scheduler.py, ledger.py |
| ``ModelRunnerOutput`` (open attributes) | statistics to the scheduler | output.py |
| ``GPUModelRunner.sample_tokens``, ``_sample`` (V1) | guide logits, copy token | runner.py |
| ``InputBatch.add_request`` (V1) | output that another engine decoded | runner.py |
| ``GPUModelRunner.sample`` (V2) | guide logits, copy token | runner_v2.py |
| ``register_model_loader``, ``set_model_tag`` | amateurs in the same forward | amateurs.py |
| ``initialize_model``, ``AttentionLayerBase`` | a amateur of shared layers | drop.py |
| ``CacheOnlyAttentionLayer`` and its builder | store hidden states in KV blocks | hidden.py |
| ``SchedulerOutput.kv_cache_block_copies`` | copy their lse | runner.py |
| ``SchedulerOutput`` (open attributes) | who takes a candidate | looking.py |
| ``Scheduler.kv_holding_waiting``, ``KVCacheBlocks`` | probes of held blocks | look_back.py |
| ``SamplingMetadata``, ``SamplingStates`` | own temperatures | runner.py, runner_v2.py |
| ``hidden_states`` of both, ``model.compute_logits`` | read grounding texts | grounding.py |
| ``Worker.init_device``, ``CPUWorker.init_device`` | install the runner hook | worker.py |
| ``OutputProcessor.add_request``, ``process_outputs`` | collect statistics | ledger.py |
| ``EngineCoreClient.add_request_async``, ``abort_requests_async`` | move answers | handoff.py |
| ``OutputProcessor.propagate_error``, ``request_states`` | the same | handoff.py |
| ``StatLoggerBase`` | the small engine's load | small_stats.py |
| ``get_tokenizer``, ``CacheConfig`` | compare tokenizers, divide memory | extras.py |
| ``EngineClient`` / ``AsyncLLM`` | verify tokens, end streams | client.py, delegate.py |
| ``is_scheduler_paused_async``, ``resources`` of the core's client | end what hangs | watch.py |
| ``make_arg_parser``, ``setup_server``, ``serve_http`` | start-up | launch.py |
| ``APIServerProcessManager``, ``launch_core_engines`` | several API processes | processes.py |
| ``LoggingConfig`` | JSON lines of vLLM beside ours | request_lines.py |
| OpenAI requests, serving classes, routers | re-exported for divserve.api | openai.py |
"""
