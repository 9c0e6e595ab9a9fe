"""Adapters of peft on tiny models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from families.family import Family, tokens
from families.hugging_face import GPT2, TEXT, made, next_tokens


def adapted(base: Callable[[], Module], config: str, /, **settings: Any) -> Callable[[], Module]:
    """The model with an adapter; parameters that start at zero are moved, so that all of them have a gradient."""

    def build() -> Module:
        import peft

        model: Module = peft.get_peft_model(base(), getattr(peft, config)(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    return build


def after_prompt(model: Module, batch: Any) -> Tensor:
    """The loss on the tokens behind a learnt prompt."""
    length = batch[0].shape[1]
    found = model(input_ids=batch[0]).logits[:, -length:-1]
    return torch.nn.functional.cross_entropy(found.transpose(1, 2), batch[0][:, 1:], reduction="none").mean(1)


LLAMA = made("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=1)
GPT = made("GPT2LMHeadModel", "GPT2Config", **GPT2)


def _family(name: str, build: Callable[[], Module], losses: Any = next_tokens) -> Family:
    return Family(name, build, tokens(32, 8), losses, needs="peft")


FAMILIES = (
    _family(
        "LoRA", adapted(LLAMA, "LoraConfig", r=2, target_modules=["q_proj", "v_proj", "embed_tokens"], lora_dropout=0.1)
    ),
    _family("LoRA on GPT-2", adapted(GPT, "LoraConfig", r=2, target_modules=["c_attn"], fan_in_fan_out=True)),
    _family("DoRA", adapted(LLAMA, "LoraConfig", r=2, target_modules=["q_proj", "v_proj"], use_dora=True)),
    _family(
        "IA3",
        adapted(
            LLAMA, "IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    _family("prompt tuning", adapted(LLAMA, "PromptTuningConfig", num_virtual_tokens=3), after_prompt),
    _family(
        "prefix tuning",
        adapted(GPT, "PrefixTuningConfig", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
        after_prompt,
    ),
)
