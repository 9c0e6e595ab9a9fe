"""Models of transformers, from configurations as small as they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from families.family import Family, N, normal, tokens, wave

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 32, "intermediate_size": 24, "max_position_embeddings": 16}
IMAGE = {**SMALL, "image_size": 8, "patch_size": 4, "num_channels": 3, "intermediate_size": 24, "num_labels": 5}


def made(model: str, config: str, /, **settings: Any) -> Callable[[], Module]:
    """A builder of one model class from one configuration class."""

    def build() -> Module:
        import transformers

        built: Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return built

    return build


def logits(model: Module, batch: Any) -> Tensor:
    """One loss per sample, from an output object's logits."""
    return wave(model(*batch).logits)


def next_tokens(model: Module, batch: Any) -> Tensor:
    """Mean cross entropy of each sample's next tokens."""
    found = model(*batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(found.transpose(1, 2), batch[0][:, 1:], reduction="none").mean(1)


def masked(model: Module, batch: Any) -> Tensor:
    """The same for a model that is told which tokens are padding."""
    ids = batch[0]
    return wave(model(input_ids=ids, attention_mask=batch[1]).logits * batch[1].unsqueeze(-1))


def translation(model: Module, batch: Any) -> Tensor:
    """An encoder's and a decoder's tokens."""
    return wave(model(input_ids=batch[0], decoder_input_ids=batch[1]).logits)


def speech(model: Module, batch: Any) -> Tensor:
    """A loss on frames."""
    return wave(model(input_values=batch[0]).logits)


def padded() -> tuple[Tensor, Tensor]:
    """Token ids and the mask of those that count."""
    (ids,) = tokens(32, 8)()
    mask = (torch.arange(8) < torch.tensor([8, 5, 7, 3]).unsqueeze(1)).long()
    return ids, mask


def pairs() -> tuple[Tensor, Tensor]:
    """Source and target tokens."""
    return tokens(32, 7)()[0], tokens(32, 5)()[0]


def _family(name: str, build: Callable[[], Module], batch: Any, losses: Any = logits, **more: Any) -> Family:
    return Family(name, build, batch, losses, needs="transformers", **more)


GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
BOTH_ENDS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SMALL_BOTH = {**BOTH_ENDS, "vocab_size": 32, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}


def heard() -> tuple[Tensor, Tensor]:
    """A spectrogram and tokens."""
    return torch.randn(N, 8, 16), tokens(32, 5)()[0]


def transcribed(model: Module, batch: Any) -> Tensor:
    """A decoder's tokens for a spectrogram."""
    return wave(model(input_features=batch[0], decoder_input_ids=batch[1]).logits)


VISION = (
    _family("ViT", made("ViTForImageClassification", "ViTConfig", **IMAGE), normal(3, 8, 8)),
    _family("DeiT", made("DeiTForImageClassification", "DeiTConfig", **IMAGE), normal(3, 8, 8)),
    _family("DINOv2", made("Dinov2ForImageClassification", "Dinov2Config", **IMAGE, mlp_ratio=2), normal(3, 8, 8)),
    _family(
        "ConvNeXt",
        made("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[4, 8], depths=[1, 2], num_stages=2,
             patch_size=2, image_size=8, num_labels=5, layer_scale_init_value=0.1),
        normal(3, 8, 8),
    ),
    _family(
        "Swin",
        made("SwinForImageClassification", "SwinConfig", image_size=16, patch_size=2, embed_dim=8, depths=[2, 2],
             num_heads=[2, 2], window_size=4, num_labels=5, drop_path_rate=0.0),
        normal(3, 16, 16),
    ),
    _family(
        "SegFormer",
        made("SegformerForImageClassification", "SegformerConfig", hidden_sizes=[8, 16], depths=[1, 1], num_labels=5,
             num_encoder_blocks=2, num_attention_heads=[1, 2], sr_ratios=[2, 1], patch_sizes=[3, 3], strides=[2, 2],
             mlp_ratios=[2, 2], drop_path_rate=0.0, hidden_dropout_prob=0.0),
        normal(3, 8, 8),
    ),
)  # fmt: skip
LANGUAGE = (
    _family("GPT-2", made("GPT2LMHeadModel", "GPT2Config", **GPT2), tokens(32, 8), next_tokens),
    _family(
        "Llama",
        made("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=1),
        tokens(32, 8),
        next_tokens,
    ),
    _family("BERT", made("BertForMaskedLM", "BertConfig", **TEXT), padded, masked),
    _family("RoBERTa", made("RobertaForMaskedLM", "RobertaConfig", **{**TEXT, "max_position_embeddings": 20}), padded, masked),
    _family(
        "T5",
        made("T5ForConditionalGeneration", "T5Config", vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2,
             num_heads=2, decoder_start_token_id=0),
        pairs,
        translation,
    ),
    _family(
        "Mixtral",
        made("MixtralForCausalLM", "MixtralConfig", **TEXT, num_key_value_heads=1, num_local_experts=4,
             num_experts_per_tok=2,
            experts_implementation="eager"),
        tokens(32, 8),
        next_tokens,
    ),
    _family(
        "Mixtral, grouped matrix product",
        made("MixtralForCausalLM", "MixtralConfig", **TEXT, num_key_value_heads=1, num_local_experts=4,
             num_experts_per_tok=2),
        tokens(32, 8),
        next_tokens,
        oracle=torch.float32,
    ),
    _family(
        "Qwen2-MoE",
        made("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **TEXT, num_key_value_heads=1, num_experts=4,
             num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            experts_implementation="eager"),
        tokens(32, 8),
        next_tokens,
    ),
    _family(
        "Gemma 2",
        made("Gemma2ForCausalLM", "Gemma2Config", **TEXT, num_key_value_heads=1, head_dim=8),
        tokens(32, 8),
        next_tokens,
    ),
    _family(
        "Mamba",
        made("MambaForCausalLM", "MambaConfig", vocab_size=32, hidden_size=8, num_hidden_layers=2, state_size=4),
        tokens(32, 6),
        next_tokens,
    ),
    _family(
        "RWKV",
        made("RwkvForCausalLM", "RwkvConfig", vocab_size=32, hidden_size=8, attention_hidden_size=8, intermediate_size=16,
             num_hidden_layers=2, context_length=16, use_cache=False),
        tokens(32, 6),
        next_tokens,
    ),
    _family(
        "wav2vec 2",
        made("Wav2Vec2ForCTC", "Wav2Vec2Config", **SMALL, vocab_size=8, intermediate_size=24, conv_dim=[8, 8],
             conv_kernel=[4, 3], conv_stride=[2, 2], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
             feat_extract_norm="layer", do_stable_layer_norm=True, mask_time_prob=0.0, layerdrop=0.0),
        normal(40),
        speech,
    ),
)  # fmt: skip
MORE = (
    _family(
        "DeBERTa",
        made("DebertaV2ForMaskedLM", "DebertaV2Config", **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"],
             position_buckets=4),
        padded,
        masked,
    ),
    _family(
        "gpt-oss",
        made("GptOssForCausalLM", "GptOssConfig", **TEXT, num_key_value_heads=1, head_dim=8, num_local_experts=4,
             num_experts_per_tok=2, experts_implementation="eager"),
        tokens(32, 8),
        next_tokens,
    ),
    _family(
        "DeepSeek-V3",
        made("DeepseekV3ForCausalLM", "DeepseekV3Config", **TEXT, num_key_value_heads=2, n_routed_experts=4, n_group=2,
             topk_group=1, num_experts_per_tok=2, moe_intermediate_size=8, q_lora_rank=8, kv_lora_rank=8,
             qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
             experts_implementation="eager"),
        tokens(32, 8),
        next_tokens,
    ),
    _family("BART", made("BartForConditionalGeneration", "BartConfig", **SMALL_BOTH, max_position_embeddings=16), pairs,
            translation),
    _family(
        "Whisper",
        made("WhisperForConditionalGeneration", "WhisperConfig", **SMALL_BOTH, num_mel_bins=8, max_source_positions=8,
             max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
        heard,
        transcribed,
    ),
)  # fmt: skip
FAMILIES = (*LANGUAGE, *MORE, *VISION)
__all__ = ["FAMILIES", "GPT2", "TEXT", "N", "made", "next_tokens"]
