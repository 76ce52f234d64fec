"""The K2 text decoder: multi-head latent attention and sigmoid-routed experts. Plain PyTorch.

One forward serves training, the tests and the engine: tokens arrive as one flat batch, and an
attention strategy (model/attention.py) decides how they see each other and the past.

Parameter names are the official tensor names without `language_model.`, with one exception: the
experts of a layer are stacked, so that

    model.layers.L.mlp.experts.E.gate_proj.weight  is  model.layers.L.mlp.experts.gate_up_proj[E, :i]
    model.layers.L.mlp.experts.E.up_proj.weight    is  model.layers.L.mlp.experts.gate_up_proj[E, i:]
    model.layers.L.mlp.experts.E.down_proj.weight  is  model.layers.L.mlp.experts.down_proj[E]

where i is moe_intermediate_size. Weights are [out, in].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perilune.model.attention import Attention, LayerQuery
from perilune.model.config import TextConfig
from perilune.model.int4 import fake_quantise
from perilune.model.kernels.experts import routed_experts
from perilune.model.kernels.fixed_tiles import routed_experts_fixed
from perilune.model.kernels.rms_norm import rms_norm
from perilune.model.mapped_experts import MappedExperts
from perilune.model.rotary import Rotary, rotate


class TextDecoder(nn.Module):
    """Token ids in, hidden states and logits out. New parameters are random (initializer_range)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.content_hash = ""
        """Of the checkpoint the weights came from; empty for new weights."""
        self._rotary = Rotary(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attention,
        placed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """tokens [n] and positions [n] (int64) -> final normalised hidden states [n, hidden].

        `placed` are rows [m] (int64) and embeddings [m, hidden] that stand there instead of the tokens':
        what was seen.
        """
        turns = self._rotary.turns(positions)
        x = self.model.embed_tokens(tokens)
        if placed is not None:
            rows, embeddings = placed
            x = x.index_copy(0, rows, embeddings.to(x.dtype))
        for layer in self.model.layers:
            x = layer(x, turns, attend)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [m, hidden] -> logits [m, vocab] in F32."""
        out: Tensor = self.lm_head(hidden)
        return out.float()

    @property
    def routers(self) -> list[Router]:
        """Routers of the expert layers, first to last: their loads and selection biases."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def train_for_int4(self, group_size: int | None) -> None:
        """From now on compute with routed experts as INT4 would store them; None: as they are.

        Gradients pass straight through the rounding.
        """
        for module in self.modules():
            if isinstance(module, Experts | MappedExperts):
                module.int4_group_size = group_size

    @property
    def experts_in_files(self) -> bool:
        return any(isinstance(module, MappedExperts) for module in self.modules())

    def compute_in_fixed_tiles(self) -> None:
        """From now on every forward has fixed_tiles.ROWS rows, and a row's neighbours change none of its
        bits. Give it a FixedTileAttention."""
        for module in self.modules():
            if isinstance(module, Experts | MappedExperts):
                module.fixed_tiles = True


class Trunk(nn.Module):
    """Everything but the output head; exists for the official `model.` in the names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class RMSNorm(nn.Module):
    """The scale of model/kernels/rms_norm.py."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(index) else MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, turns: Tensor, attend: Attention) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, attend)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LatentAttention(nn.Module):
    """Projections around an attention strategy. Only the latents are normalised, the rotary key is not."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.index = index
        heads, hidden = config.num_attention_heads, config.hidden_size
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.latent_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.latent_width, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.latent_eps)
        key_and_value = config.qk_nope_head_dim + config.v_head_dim
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, heads * key_and_value, bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)

    def forward(self, x: Tensor, turns: Tensor, attend: Attention) -> Tensor:
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(len(x), config.num_attention_heads, config.qk_head_dim)
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        heads = attend(
            LayerQuery(
                layer=self.index,
                q_nope=q_nope,
                q_rope=rotate(q_rope, turns),
                latent=self.kv_a_layernorm(latent),
                k_rope=rotate(k_rope, turns),
                kv_b=self.kv_b_proj.weight,
                scale=config.softmax_scale,
            )
        )
        out: Tensor = self.o_proj(heads.flatten(1))
        return out


class MLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Chooses experts by sigmoid score plus bias; weighs them by the score alone.

    The bias is a buffer: balancing moves it by `loads`, no gradient reaches it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)
        self.config = config
        self._last_chosen = torch.empty(0, dtype=torch.int64, device="cpu")

    @property
    def loads(self) -> Tensor:
        """[E] int64: how many tokens chose each expert in the last forward."""
        return self._last_chosen.flatten().bincount(minlength=len(self.weight))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, hidden] -> chosen experts [n, k] int64 and their weights [n, k] F32."""
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        biased = scores.detach() + self.e_score_correction_bias.float()
        chosen = biased.topk(self.config.num_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(-1, chosen)
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        self._last_chosen = chosen
        return chosen, weights * self.config.routed_scaling_factor


class Experts(nn.Module):
    """Weights of one layer's routed experts, stacked; names and slices are in the module docstring."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.int4_group_size: int | None = None
        self.fixed_tiles = False

    def weights(self) -> tuple[Tensor, Tensor]:
        """gate_up [E, 2i, h] and down [E, h, i] to compute with."""
        if self.int4_group_size is None:
            return self.gate_up_proj, self.down_proj
        group = self.int4_group_size
        return fake_quantise(self.gate_up_proj, group), fake_quantise(self.down_proj, group)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [n, hidden], chosen and weights [n, k] -> [n, hidden]."""
        gate_up, down = self.weights()
        if not self.fixed_tiles:
            return routed_experts(x, chosen, weights, gate_up, down)

        def expert(x: Tensor, number: int) -> Tensor:
            gate, up = F.linear(x, gate_up[number]).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, down[number])

        return routed_experts_fixed(x, chosen, weights, expert)


class MoE(nn.Module):
    """Routed experts plus the shared expert, which is neither gated nor scaled."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts: nn.Module = Experts(config)
        shared_width = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = MLP(config.hidden_size, shared_width)

    def forward(self, x: Tensor) -> Tensor:
        chosen, weights = self.gate(x)
        routed = self.experts(x, chosen, weights)
        out: Tensor = routed + self.shared_experts(x)
        return out
