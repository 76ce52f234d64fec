"""The shape of the bundled model: every code path of K2.6 at 4 M parameters."""

from __future__ import annotations

from perilune.chat.tokenizer import IM_END, Tokenizer
from perilune.model.config import Int4, TextConfig


def config_for(tokenizer: Tokenizer) -> TextConfig:
    return TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        q_lora_rank=96,
        rope_theta=50000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.special("[BOS]"),
        eos_token_id=tokenizer.special(IM_END),
        pad_token_id=tokenizer.special("[PAD]"),
        quantization=Int4(group_size=32),
    )
