"""Loads what runs beside the served model in the same forward: amateurs, a store of hidden states.

A model loader builds the served model as usual, then its amateurs, as vLLM builds a draft model:
their attention layers land in the same forward context, so they get KV cache from the same block
table, and prefix caching, chunked prefill, preemption and parallel ranks need nothing special. The
served model's class is replaced by a subclass: ``forward`` returns the hidden states of all models
side by side (the runner only selects rows of them), and ``compute_logits`` takes the served model's
part. An amateur's logits are only computed for the rows that are compared with them. The store
(`divserve.engine.models.hidden_store`) only keeps the served model's states.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import ModelConfig
from vllm.config.utils import replace
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader import get_model_loader, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from divserve.engine.models import hidden_store
from divserve.engine.models.drop import dropped_layers, kept_layers, shared_model
from divserve.errors import StartupError, one_line

__all__ = [
    "AMATEUR_NAMES", "LOAD_FORMAT", "Drafting", "amateur_config", "amateur_logits",
    "amateur_tensors", "amateur_vocab", "check_overrides", "drafting_amateur", "load_options",
]  # fmt: skip

LOAD_FORMAT = "divserve_amateurs"
AMATEUR_NAMES = ("amateur", "tuned")
"""Names of the amateurs in the order of their streams: the second, then the third."""
ATTRIBUTE = "divserve_amateurs"


def load_options(
    load_config: Any, amateurs: Mapping[str, str], hidden_states: bool = False
) -> dict[str, Any]:
    """The ``load_format`` and ``model_loader_extra_config`` that load the extras as well.

    Args:
        load_config: vLLM's ``LoadConfig`` as the user has set it.
        amateurs: by name, a model path, or ``drop:N`` for the served model without N of its layers.
        hidden_states: whether the served model's hidden states are stored.
    """
    extra = {
        "amateurs": dict(amateurs),
        "hidden_states": hidden_states,
        "load_format": load_config.load_format,
        "extra": load_config.model_loader_extra_config,
    }
    return {"load_format": LOAD_FORMAT, "model_loader_extra_config": extra}


def check_overrides(load_config: Any, overrides: Mapping[str, Any]) -> None:
    """Raises `ValueError` for overrides of a running engine that would replace the extras' loader.

    Args:
        load_config: vLLM's ``LoadConfig``.
        overrides: by the names of vLLM's configurations.
    """
    if "load_config" in overrides and load_config.load_format == LOAD_FORMAT:
        raise ValueError(
            "load_config cannot be changed on a server with --amateur, --tuned or --look-back: "
            "start it with the load format wanted"
        )


def amateur_config(served: ModelConfig, model: str) -> ModelConfig:
    """The configuration of an amateur: dtype, context length and tokenizer of the served model.

    Raises:
        StartupError: vLLM rejects it (no such model, too short a context …), or it would have too
            few layers.
    """
    layers = dropped_layers(model)
    overrides: dict[str, Any] = {}
    if layers is not None:
        model = served.model
        kept = kept_layers(served.get_total_num_hidden_layers(), layers)
        overrides["num_hidden_layers"] = len(kept)
    try:
        return ModelConfig(
            model=model,
            runner="draft",
            tokenizer=served.tokenizer,
            tokenizer_mode=served.tokenizer_mode,
            trust_remote_code=served.trust_remote_code,
            dtype=served.dtype,
            seed=served.seed,
            max_model_len=served.max_model_len,
            spec_target_max_model_len=served.max_model_len,
            enforce_eager=served.enforce_eager,
            max_logprobs=served.max_logprobs,
            config_format=served.config_format,
            hf_overrides=overrides,
        )
    except (OSError, ValueError) as error:
        raise StartupError(
            f"vLLM refuses {model} beside {served.model}: {one_line(error)}"
        ) from error


def amateur_logits(model: nn.Module, hidden_states: Tensor, rows: Tensor) -> Tensor:
    """Raw logits of all amateurs for some rows.

    Args:
        model: the served model, with its amateurs.
        hidden_states: ``[R, sum of the hidden sizes]`` of the rows that are sampled.
        rows: ``[N] int64``.

    Returns:
        ``[amateurs · N, V]`` in the models' dtype, one amateur after another; V is the shortest
        vocabulary.
    """
    amateurs: Amateurs = getattr(model, ATTRIBUTE)
    return amateurs.logits(hidden_states.index_select(0, rows))


def amateur_tensors(model: nn.Module) -> list[Tensor]:
    """`Amateurs.own_tensors` of a served model; an empty list if it has no amateurs."""
    amateurs: Amateurs | None = getattr(model, ATTRIBUTE, None)
    return [] if amateurs is None else amateurs.own_tensors(model)


def amateur_vocab(model: nn.Module) -> int | None:
    """The shortest vocabulary of a served model's amateurs; None if it has no amateurs."""
    amateurs: Amateurs | None = getattr(model, ATTRIBUTE, None)
    return None if amateurs is None else min(amateurs.sizes)


@dataclass(frozen=True)
class Drafting:
    """An amateur that runs alone, to draft."""

    model: nn.Module
    layers: frozenset[str]
    """Names of its layers in the KV cache."""
    size: int
    """Its vocabulary."""
    shared: int
    """The tokens of both it and the served model are the first ones."""

    def next_tokens(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The most likely tokens ``[N] int64`` after ``input_ids`` and ``positions`` ``[N]``.

        Call in the forward context of its layers.
        """
        states = self.model(input_ids=input_ids.clamp_max(self.size - 1), positions=positions)
        logits: Tensor = self.model.compute_logits(states)  # type: ignore[operator]
        return logits[:, : self.shared].argmax(-1)


def drafting_amateur(model: nn.Module) -> Drafting:
    """The amateur of a served model that drafts: the one of ``--amateur``.

    Raises:
        StartupError: it has none.
    """
    amateurs: Amateurs | None = getattr(model, ATTRIBUTE, None)
    if amateurs is None:
        raise StartupError("there is no amateur to draft: start the server with --amateur")
    own = amateurs.models[0]
    layers = (m.layer_name for m in own.modules() if isinstance(m, AttentionLayerBase))
    size = amateurs.sizes[0]
    return Drafting(own, frozenset(layers), size, min(size, amateurs.served_size))


class Amateurs:
    """The amateurs of a served model. Not a module, so that vLLM does not find them in it."""

    def __init__(
        self, models: list[nn.Module], configs: list[ModelConfig], served: ModelConfig
    ) -> None:
        self.models = models
        self.served_size = served.get_vocab_size()
        self.widths = [served.get_hidden_size(), *(config.get_hidden_size() for config in configs)]
        """Hidden sizes: the served model's, then the amateurs'."""
        self.sizes = [config.get_vocab_size() for config in configs]

    def own_tensors(self, served: nn.Module) -> list[Tensor]:
        """Weights and buffers of all amateurs, without those that the served model has as well."""
        theirs = {id(tensor) for tensor in (*served.parameters(), *served.buffers())}
        tensors = (x for model in self.models for x in (*model.parameters(), *model.buffers()))
        return [tensor for tensor in tensors if id(tensor) not in theirs]

    def forward(self, input_ids: Tensor, positions: Tensor) -> list[Tensor]:
        """Hidden states ``[T, H]`` of each; ``input_ids`` and ``positions`` are ``[T]``."""
        return [
            # Vocabularies may be padded differently: only the served model has a row for some ids.
            model(input_ids=input_ids.clamp_max(size - 1), positions=positions)
            for model, size in zip(self.models, self.sizes, strict=True)
        ]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """See `amateur_logits`; ``hidden_states`` is ``[N, sum of the hidden sizes]``."""
        shared = min(self.sizes)
        own = hidden_states.split(self.widths, dim=-1)[1:]
        found = [
            model.compute_logits(states.contiguous())[:, :shared]  # type: ignore[operator]
            for model, states in zip(self.models, own, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def _join(served: nn.Module, amateurs: Amateurs) -> None:
    """Re-classes the served model so that the amateurs run in its forward."""
    base: Any = type(served)
    width = amateurs.widths[0]

    class Joined(base):
        def forward(
            self, input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any
        ) -> Tensor:
            states = base.forward(self, input_ids, positions, *args, **kwargs)
            others = amateurs.forward(input_ids, positions)
            return torch.cat((states, *(other.to(states.dtype) for other in others)), dim=-1)

        def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            own = hidden_states[..., :width].contiguous()
            return base.compute_logits(self, own, *args, **kwargs)

    # vLLM prints and compares class names.
    Joined.__name__, Joined.__qualname__ = base.__name__, base.__qualname__
    served.__class__ = Joined
    object.__setattr__(served, ATTRIBUTE, amateurs)


@register_model_loader(LOAD_FORMAT)
class AmateurLoader(BaseModelLoader):
    """Loads the served model with its own loader, then the extras."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        extra = load_config.model_loader_extra_config
        self._amateurs: dict[str, str] = extra["amateurs"]
        self._hidden_states: bool = extra["hidden_states"]
        self._base_config = replace(
            load_config,
            load_format=extra["load_format"],
            model_loader_extra_config=extra["extra"],
        )
        self._base = get_model_loader(self._base_config)

    def download_model(self, model_config: ModelConfig) -> None:
        """Fetches the served model."""
        self._base.download_model(model_config)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Loads the served model's weights into `model`."""
        self._base.load_weights(model, model_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Iterable[tuple[str, Tensor]]:
        """The served model's weights on disk, for vLLM's ``reload_weights``.

        Amateurs keep theirs, except that ``drop:N`` has the served model's tensors.

        Raises:
            NotImplementedError: its loader cannot reload; what vLLM raises for such loaders.
        """
        if (weights := getattr(self._base, "get_all_weights", None)) is None:
            raise NotImplementedError(
                f"weights of the format {self._base_config.load_format} cannot be reloaded"
            )
        found: Iterable[tuple[str, Tensor]] = weights(model_config, model)
        return found

    def load_model(
        self, vllm_config: Any, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        """The served model, joined with its amateurs and its store."""
        own = copy.copy(vllm_config)
        own.load_config = self._base_config
        served: nn.Module = self._base.load_model(
            vllm_config=own, model_config=model_config, prefix=prefix
        )
        if self._hidden_states:
            hidden_store.attach(served, vllm_config, model_config.get_hidden_size())
        names = [name for name in AMATEUR_NAMES if name in self._amateurs]
        if not names:
            return served
        configs = [amateur_config(model_config, self._amateurs[name]) for name in names]
        models = [
            self._load(served, own, name, config)
            for name, config in zip(names, configs, strict=True)
        ]
        _join(served, Amateurs(models, configs, model_config))
        return served

    def _load(self, served: nn.Module, config: Any, name: str, amateur: ModelConfig) -> nn.Module:
        # Shares the compilation config, and with it the forward context that holds all layers.
        view = replace(config, quant_config=None, model_config=amateur)
        with set_model_tag(name):
            if dropped_layers(self._amateurs[name]) is not None:
                return shared_model(served, view, name)
            loaded: nn.Module = self._base.load_model(
                vllm_config=view, model_config=amateur, prefix=name
            )
            return loaded
