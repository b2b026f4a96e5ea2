"""The fusion: tokens of all modalities and a mask in, one vector a row out; one small class for each strategy.

All strategies read the same input. In every row each modality that the model has a tower for has at least one token:
where it is absent that is its learned *absent* embedding and nothing else, so that no strategy has a case of its own
for what is missing. Shapes depend on the configuration and on the number of tokens alone, never on who is present.

Shape legend: B batch rows, T tokens, D fusion width, M modalities of the model, Q queries, H heads.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

try:
    from .compat_mmfusion import init, record_outputs
    from .configuration_mmfusion import TOWER_CONFIGS, MMFusionConfig
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from compat_mmfusion import init, record_outputs
    from configuration_mmfusion import TOWER_CONFIGS, MMFusionConfig  # flat checkout: train.py, tests


# == Attention ========================================================================================================


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights (B, H, Q, T); heads come in as (B, H, Q or T, D / H)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MMFusionCrossAttention(nn.Module):
    """Queries (B, Q, D) attend to tokens (B, T, D)."""

    def __init__(self, config: MMFusionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, D) -> (B, H, T, D / H)
            for projected in (self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens))
        )
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)  # which autocast may have lowered
        read, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(read.flatten(2)), weights  # (B, Q, H, D / H) -> (B, Q, D)


class MMFusionLayer(GradientCheckpointingLayer):
    """One fusion block: attention, then feed-forward, pre-norm and residual (zeroed, it is the identity)."""

    def __init__(self, config: MMFusionConfig):
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(sorted(ACT2FN))}, got {config.hidden_act!r}")
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MMFusionCrossAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Queries (B, Q, D) read tokens (B, T, D), or without tokens each other."""
        normed = self.attention_norm(queries)
        read, _ = self.attention(normed, normed if tokens is None else tokens, attention_mask, **kwargs)
        queries = queries + self.dropout(read)
        return queries + self.dropout(self.mlp(self.mlp_norm(queries)))


def additive_mask(allowed: torch.BoolTensor, like: torch.Tensor) -> torch.Tensor:
    """0 where attention is allowed (B, Q, T), the lowest number elsewhere, for all heads (B, 1, Q, T)."""
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, torch.finfo(like.dtype).min
    )[:, None]


# == What all strategies share ========================================================================================


class MMFusionFusion(PreTrainedModel):
    """A strategy of fusion; a model of its own, so that what it records is the fusion and not the towers.

    A strategy says in `read` how tokens become states (B, Q, D); their mean, normalised, is the row's vector.
    """

    config: MMFusionConfig
    config_class = MMFusionConfig
    base_model_prefix = "fusion"
    main_input_name = "tokens"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MMFusionLayer, "attentions": MMFusionCrossAttention}

    def __init__(self, config: MMFusionConfig):
        super().__init__(config)
        self._no_split_modules = [type(self).__name__]  # a `device_map` leaves it on one device, and in one piece
        self.columns = [list(TOWER_CONFIGS).index(modality) for modality in config.modalities]
        self.build(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MMFusionFusion):
            for name, parameter in module.named_parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=module.initial_std(name))

    def initial_std(self, name: str) -> float:
        """Standard deviation that a strategy's own parameter starts with."""
        return self.config.initializer_range

    def build(self, config: MMFusionConfig) -> None:
        """Make the strategy's layers and parameters."""
        raise NotImplementedError

    def read(
        self, tokens: torch.Tensor, token_mask: torch.BoolTensor, token_modality: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """States (B, Q, D) of tokens; inputs as for `forward`."""
        raise NotImplementedError

    @record_outputs
    def forward(
        self,
        tokens: torch.Tensor,
        token_mask: torch.BoolTensor,
        token_modality: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Fuse tokens.

        Inputs:
            tokens: (B, T, D), zero where masked.
            token_mask: (B, T), True = read; at least one token of each modality a row.
            token_modality: (T,), column of `modality_mask` that each token belongs to.

        Returns:
            `last_hidden_state` (B, Q, D), `pooler_output` (B, D); where the strategy has blocks of attention, also
            `hidden_states` of each and `attentions` (eager attention only) when asked for.
        """
        states = self.layernorm(self.read(tokens, token_mask, token_modality, **kwargs))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states.mean(dim=1))

    def members(self, token_mask: torch.BoolTensor, token_modality: torch.Tensor) -> torch.BoolTensor:
        """(B, M, T), True where an unmasked token belongs to a modality of the model."""
        columns = torch.tensor(self.columns, device=token_modality.device)
        return token_mask[:, None] & (token_modality == columns[:, None])

    def token_shares(
        self, attentions: tuple[torch.Tensor, ...], token_mask: torch.BoolTensor, token_modality: torch.Tensor
    ) -> torch.Tensor:
        """Return how much of each token was read (B, T), 1 in all: the mean over blocks, heads and queries.

        Args:
            attentions: Of each block (B, H, Q, T), as `forward` records them with eager attention.
            token_mask, token_modality: As for `forward`.
        """
        return torch.stack([layer.float().mean(dim=(1, 2)) for layer in attentions]).mean(dim=0)

    def averages(
        self, tokens: torch.Tensor, token_mask: torch.BoolTensor, token_modality: torch.Tensor
    ) -> torch.Tensor:
        """Mean token of each modality (B, M, D)."""
        weights = self.members(token_mask, token_modality).to(tokens.dtype)
        return weights @ tokens / weights.sum(dim=-1, keepdim=True).clamp(min=1)


# == Strategies =======================================================================================================


class CrossAttentionFusion(MMFusionFusion):
    """Learned queries read all tokens, block by block.

    With `balanced_attention` each modality has the same share of the attention as long as nothing is learnt, however
    many tokens it has: a voice has a hundred, a face has nine.

    Source: Perceiver (Jaegle et al. 2021, arXiv:2103.03206, section 3); the queries do not attend to each other here,
    and keys are normalised once, by the projectors, instead of in every block.
    """

    def build(self, config: MMFusionConfig) -> None:
        self.queries = nn.Parameter(torch.empty(config.num_fusion_queries, config.hidden_size))
        self.layers = nn.ModuleList(MMFusionLayer(config) for _ in range(config.num_hidden_layers))

    def read(self, tokens, token_mask, token_modality, **kwargs):
        # A copy: `hidden_states[0]` is handed out, and a view would let its owner write into the weights.
        queries = self.queries.to(tokens.dtype).repeat(tokens.shape[0], 1, 1)  # (Q, D) -> (B, Q, D)
        mask = additive_mask(token_mask[:, None], tokens)  # (B, 1, 1, T)
        if self.config.balanced_attention:
            members = self.members(token_mask, token_modality).to(tokens.dtype)
            counts = (members * members.sum(dim=-1, keepdim=True)).sum(dim=1).clamp(min=1)  # of its kind (B, T)
            mask = mask - counts.log()[:, None, None]
        mask = mask.expand(-1, -1, queries.shape[1], -1)
        for layer in self.layers:
            queries = layer(queries, tokens, mask, **kwargs)
        return queries


class BottleneckFusion(MMFusionFusion):
    """Each modality's tokens attend to themselves and to a few bottleneck tokens, through which alone they exchange.

    The modalities share the blocks. Each has its copy of the bottleneck tokens in a block; after it the copies are
    averaged.

    Source: MBT (Nagrani et al. 2021, arXiv:2107.00135, section 3.3).
    """

    def build(self, config: MMFusionConfig) -> None:
        self.bottleneck = nn.Parameter(torch.empty(config.num_fusion_queries, config.hidden_size))
        self.layers = nn.ModuleList(MMFusionLayer(config) for _ in range(config.num_hidden_layers))

    def read(self, tokens, token_mask, token_modality, **kwargs):
        num_tokens, (width, _) = tokens.shape[1], self.bottleneck.shape
        shared = self.bottleneck.to(tokens.dtype).repeat(tokens.shape[0], 1, 1)  # (B, Q, D)
        columns = torch.tensor(self.columns, device=token_modality.device)
        owner = torch.cat([token_modality, columns.repeat_interleave(width)])  # whose each token is (T + M Q)
        is_read = F.pad(token_mask, (0, owner.shape[0] - num_tokens), value=True)
        allowed = (owner[:, None] == owner) & is_read[:, None]
        mask = additive_mask(allowed, tokens)
        for layer in self.layers:
            states = layer(torch.cat([tokens, shared.repeat(1, len(self.columns), 1)], dim=1), None, mask, **kwargs)
            tokens, copies = states.split([num_tokens, owner.shape[0] - num_tokens], dim=1)
            shared = copies.unflatten(1, (-1, width)).mean(dim=1)
        return torch.cat([self.averages(tokens, token_mask, token_modality), shared], dim=1)

    def token_shares(self, attentions, token_mask, token_modality):
        """As in the base class, but followed through the blocks: here the tokens themselves change in each.

        Source: attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, section 3).
        """
        members, width = self.members(token_mask, token_modality).float(), len(self.bottleneck)  # (B, M, T)
        read = (members / members.sum(dim=-1, keepdim=True).clamp(min=1)).sum(dim=1)  # by the averages (B, T)
        copies = read.new_ones(len(read), len(self.columns), width) / len(self.columns)  # (B, M, Q)
        for layer in reversed(attentions):
            copies = copies.mean(dim=1, keepdim=True).expand_as(copies)  # after a block the copies were averaged
            shares = torch.cat([read, copies.flatten(1)], dim=1)  # (B, T + M Q)
            # Half of what a state says is the state itself, by the residual; the rest it has read.
            shares = (shares + (shares[:, None] @ layer.float().mean(dim=1)).squeeze(1)) / 2
            read, copies = shares[:, : read.shape[1]], shares[:, read.shape[1] :].unflatten(1, copies.shape[1:])
        return read / read.sum(dim=-1, keepdim=True)  # the learned bottleneck left out


class PairwiseFusion(MMFusionFusion):
    """For each ordered pair of modalities, what one says is read again in the light of the other.

    What differs from the source: a target is not its whole sequence but learned queries that have read it, so that
    the price does not grow with the product of two lengths.

    Source: MulT (Tsai et al. 2019, arXiv:1906.00295, section 3.2).
    """

    def build(self, config: MMFusionConfig) -> None:
        names = config.modalities
        self.queries = nn.Parameter(torch.empty(config.num_fusion_queries, config.hidden_size))
        self.readers = nn.ModuleDict({name: MMFusionLayer(config) for name in names})
        self.pairs = nn.ModuleDict(
            {
                f"{target}_from_{source}": nn.ModuleList(
                    MMFusionLayer(config) for _ in range(config.num_hidden_layers)
                )
                for target in names for source in names if target != source
            }
        )  # fmt: skip
        self.join = nn.Linear((len(self.pairs) or 1) * config.hidden_size, config.hidden_size)

    def read(self, tokens, token_mask, token_modality, **kwargs):
        names, members = self.config.modalities, self.members(token_mask, token_modality)
        start = self.queries.to(tokens.dtype).repeat(tokens.shape[0], 1, 1)
        masks = {
            name: additive_mask(members[:, index, None].expand(-1, start.shape[1], -1), tokens)
            for index, name in enumerate(names)
        }
        targets = {name: self.readers[name](start, tokens, masks[name], **kwargs) for name in names}
        if len(names) == 1:
            return self.join(targets[names[0]])
        states = []
        for pair, layers in self.pairs.items():
            target, _, source = pair.split("_")
            queries = targets[target]
            for layer in layers:
                queries = layer(queries, tokens, masks[source], **kwargs)
            states.append(queries)
        return self.join(torch.cat(states, dim=-1))


class GatedFusion(MMFusionFusion):
    """Each modality's mean passes a sigmoid gate that has seen all of them, and they are added up.

    Source: GMU (Arevalo et al. 2017, arXiv:1702.01992, section 3.1).
    """

    def build(self, config: MMFusionConfig) -> None:
        count, size = len(config.modalities), config.hidden_size
        self.values = nn.ModuleList(nn.Linear(size, size) for _ in range(count))
        self.gates = nn.Linear(count * size, count * size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def read(self, tokens, token_mask, token_modality, **kwargs):
        means = self.averages(tokens, token_mask, token_modality)  # (B, M, D)
        values = torch.stack([value(means[:, i]) for i, value in enumerate(self.values)], dim=1).tanh()
        gates = self.gates(means.flatten(1)).sigmoid().unflatten(1, values.shape[1:])
        return self.dropout(gates * values).sum(dim=1, keepdim=True)


class WeightedSumFusion(MMFusionFusion):
    """The modalities' means, each through a layer of its own, in a learned mixture that is the same for all rows.

    Source: the late fusion of scalar weights in ELMo's manner (Peters et al. 2018, arXiv:1802.05365, equation 1).
    """

    def build(self, config: MMFusionConfig) -> None:
        count, size = len(config.modalities), config.hidden_size
        self.values = nn.ModuleList(nn.Linear(size, size) for _ in range(count))
        self.weights = nn.Parameter(torch.empty(count))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def read(self, tokens, token_mask, token_modality, **kwargs):
        means = self.averages(tokens, token_mask, token_modality)
        values = torch.stack([value(means[:, i]) for i, value in enumerate(self.values)], dim=1)
        shares = self.weights.softmax(dim=0).to(values.dtype)
        return (self.dropout(self.activation(values)) * shares[:, None]).sum(dim=1, keepdim=True)


class ConcatFusion(MMFusionFusion):
    """The modalities' means, one behind the other, through a perceptron with one hidden layer.

    Source: the baseline that multimodal papers start from (Ngiam et al. 2011, "Multimodal Deep Learning", section 3).
    """

    def build(self, config: MMFusionConfig) -> None:
        self.mlp = nn.Sequential(
            nn.Linear(len(config.modalities) * config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Dropout(config.hidden_dropout_prob),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def read(self, tokens, token_mask, token_modality, **kwargs):
        return self.mlp(self.averages(tokens, token_mask, token_modality).flatten(1))[:, None]


class LowRankFusion(MMFusionFusion):
    """The outer product of all modalities' means, weighted by a tensor of low rank, without ever making the product.

    Source: LMF (Liu et al. 2018, arXiv:1806.00064, section 3.2).
    """

    def build(self, config: MMFusionConfig) -> None:
        count, size = len(config.modalities), config.hidden_size
        self.factors = nn.Parameter(torch.empty(count, config.fusion_rank, size + 1, size))
        self.shares = nn.Linear(config.fusion_rank, 1)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def initial_std(self, name: str) -> float:
        return self.config.hidden_size**-0.5  # a product of small numbers vanishes

    def read(self, tokens, token_mask, token_modality, **kwargs):
        means = F.pad(self.averages(tokens, token_mask, token_modality), (0, 1), value=1.0)  # (B, M, D + 1)
        parts = torch.einsum("bmi,mrio->bmro", means, self.factors.to(means.dtype))
        product = self.dropout(parts.prod(dim=1))  # (B, R, D)
        return self.shares(product.transpose(1, 2)).transpose(1, 2)


FUSIONS = {
    "cross_attention": CrossAttentionFusion,
    "bottleneck": BottleneckFusion,
    "pairwise": PairwiseFusion,
    "gate": GatedFusion,
    "weighted_sum": WeightedSumFusion,
    "concat": ConcatFusion,
    "low_rank": LowRankFusion,
}
