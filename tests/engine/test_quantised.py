"""Guided decoding of quantised models: the distributions are those of stock vLLM, combined."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from vllm import _custom_ops  # noqa: F401 (registers the kernels)

from divserve.startup.cpu import float32_fails, has_amx
from tests.engine.test_architectures import LENGTHS, ROOMY, Check
from tests.support import forced
from tests.support.engine import Engine
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only
from tests.support.quantised import FORMATS, NOT_SERVED, Format, make

pytestmark = [pytest.mark.long, cpu_only("these are the kernels of a CPU")]

ERROR = 0.5
"""Largest difference of a log-prob, nats: activations are rounded by the batch's kernels, and
contrasts double it. With wrong positions of a cache or another guide it is several nats."""


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.title)
def test_every_answer_is_that_of_the_reference(one: Format, tmp_path: Path) -> None:
    path = make(one, tmp_path)
    fails = float32_fails(AutoConfig.from_pretrained(path), None, has_amx()) is not None
    dtype = "bfloat16" if fails else "float32"
    with ExitStack() as opened:

        def engine(lockstep: bool, **options: int) -> Engine:
            made = Engine(path, lockstep=lockstep, dtype=dtype, **options)
            opened.callback(made.close)
            return made

        reference = forced.Stock(engine(False, max_logprobs=-1))
        check = Check(reference, ERROR)
        check(engine(True, max_num_batched_tokens=512), LENGTHS, ROOMY)
    record(
        Row(
            "quantisation",
            one.title,
            "two rounds",
            f"tiny Llama, {dtype}, V1, CPU, prefix cache hits",
            reference.name,
            check.worst,
        )
    )


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.title)
def test_a_server_chooses_a_dtype_that_works(one: Format, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(make(one, tmp_path))
    needs = float32_fails(config, None, has_amx()) is not None
    assert needs == (has_amx() or one.config["quant_method"] != "compressed-tensors")


@pytest.mark.parametrize("title", NOT_SERVED)
def test_what_is_not_served_says_why(title: str) -> None:
    """It ends once vLLM has the kernel: then the format has to be tried."""
    assert torch.ops._C.static_scaled_fp8_quant.default._schema.arguments == []
    record(Row("quantisation", title, why=NOT_SERVED[title]))
