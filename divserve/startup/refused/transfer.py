"""KV connectors that do not keep to what vLLM takes of their offers, or are not proven to."""

from __future__ import annotations

from divserve.startup import connectors
from divserve.startup.refused.refusal import Refusal

__all__ = ["KV_TRANSFER"]

KV_TRANSFER = (
    Refusal(
        "ExampleConnector",
        "it stores a prompt that is read in chunks before it has been read",
        connectors.gives("ExampleConnector"),
    ),
    Refusal(
        "DecodeBenchConnector",
        "it makes keys and values up",
        connectors.gives("DecodeBenchConnector"),
    ),
    Refusal(
        "ExampleHiddenStatesConnector",
        "it delivers hidden states, not keys and values",
        connectors.gives("ExampleHiddenStatesConnector"),
    ),
    Refusal(
        "MoRIIOConnector",
        "it loads every prompt from an instance that has not read the guide",
        connectors.gives("MoRIIOConnector"),
    ),
    Refusal(
        "LMCacheMPConnector (also --kv-offloading-backend lmcache)",
        "its list of a request's blocks only grows, but a group that starts over gets others",
        connectors.gives("LMCacheMPConnector"),
    ),
    Refusal(
        "HF3FSKVConnector",
        "it plans a load before vLLM has taken its offer, which may be less",
        connectors.gives("HF3FSKVConnector"),
    ),
    Refusal(
        "FlexKVConnectorV1, HiSparseConnector, MooncakeConnector and MooncakeStoreConnector",
        "it is not proven that they load nothing where nothing may be loaded",
        connectors.gives(
            "FlexKVConnectorV1", "HiSparseConnector", "MooncakeConnector", "MooncakeStoreConnector"
        ),
    ),
    Refusal(
        "--kv-transfer-config with windows, chunked attention or recurrent state",
        "not proven: there a load brings only what its end needs",
        connectors.several_kinds_of_cache,
    ),
    Refusal(
        "--kv-transfer-config with --enable-lora",
        "not every store tells adapters apart",
        connectors.adapters,
    ),
    Refusal(
        "--kv-transfer-config with pipeline or data parallelism",
        "it is not proven with a connector for each stage or rank",
        connectors.several_ranks,
    ),
)
"""Of ``--kv-transfer-config``, among the following ones."""
