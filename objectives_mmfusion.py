"""What training asks of the model: the task's loss row by row, and what keeps the modalities in balance.

Nothing here runs when a model is used. Losses come row by row, so that a row without a label can be left out and two
fusions of one row can be compared. What turns gradients sits on the tokens, between towers and fusion: there the
gradient of each modality passes as a whole, and the towers are run backwards once.

Shape legend: B batch rows, T tokens, D fusion width, M = 3 modalities, L labels.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

IGNORED = -100  # the class number of a row without a label; in float labels it is NaN


# == Which modalities a row is fused with =============================================================================


def sample_subsets(presence: torch.BoolTensor, dropout: float) -> torch.BoolTensor:
    """A random subset of each row's modalities, each left out with probability `dropout`, never all of them.

    A row that would lose everything keeps one modality, drawn uniformly. With `dropout=0.5` a row of three thus gets
    each single modality with probability 1/6 and each larger subset with 1/8.

    Args:
        presence: (B, M), True where the row has the modality.
        dropout: In [0, 1).

    Returns:
        (B, M), True where the modality is kept.
    """
    draw = torch.rand(presence.shape, device=presence.device).masked_fill(~presence, -1.0)
    kept = presence & (draw >= dropout)
    lucky = F.one_hot(draw.argmax(dim=1), presence.shape[1]).bool() & presence
    return torch.where(kept.any(dim=1, keepdim=True), kept, lucky)


# == Losses ===========================================================================================================


def row_losses(logits: torch.Tensor, labels: torch.Tensor, config) -> tuple[torch.Tensor, torch.BoolTensor]:
    """(Loss of each row (B,), whether it has a label (B,)); without one the loss is 0.

    Args:
        logits: (B, L).
        labels: (B,) class numbers, `IGNORED` for none; or floats (B, L), or (B,) of a regression, NaN for none.
        config: Says problem type, `label_smoothing` and `class_weights`.
    """
    logits, problem = logits.float(), config.problem_type
    if problem is None:  # by the rule of `transformers`
        classes = "multi_label" if labels.is_floating_point() else "single_label"
        problem = "regression" if logits.shape[1] == 1 else f"{classes}_classification"
    if problem == "single_label_classification":
        weights = config.class_weights and torch.tensor(config.class_weights, device=logits.device)
        losses = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORED, reduction="none", label_smoothing=config.label_smoothing
        )
        return losses, labels != IGNORED
    labels = labels.float().view(logits.shape)
    known = ~labels.isnan()
    labels = labels.masked_fill(~known, 0.0)
    if problem == "multi_label_classification":
        smoothed = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
        weights = config.class_weights and torch.tensor(config.class_weights, device=logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none", pos_weight=weights)
    else:
        losses = F.mse_loss(logits, labels, reduction="none")
    return (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1), known.any(dim=1)


def mean_of(losses: torch.Tensor, has_label: torch.BoolTensor) -> torch.Tensor:
    """Mean over the rows that have a label."""
    return (losses * has_label).sum() / has_label.sum().clamp(min=1)


def ranking_losses(more: torch.Tensor, fewer: torch.Tensor) -> torch.Tensor:
    """How much worse each row does with more of its modalities than with fewer (B,); 0 where it does not.

    Only what was fused with more is taught by it: with fewer, nothing shall become worse for comparison's sake.

    Source: CML (Ma et al. 2023, arXiv:2306.04320, section 4), which ranks confidences; here losses are ranked, so
    that regression is ranked, too.
    """
    return F.relu(more - fewer.detach())


def contrastive_loss(
    vectors: dict[str, torch.Tensor],
    presence: dict[str, torch.BoolTensor],
    positives: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Bring what belongs together nearer than what does not, for each pair of modalities and in both directions.

    Rows that lack one of a pair stand aside for that pair. Under several processes the rows of all are compared, each
    process counting its own.

    Args:
        vectors: Modality -> (B, D), of length 1.
        presence: Modality -> (B,), True where the row has it.
        positives: (B,) class numbers: rows of one class belong together; None: only a row with itself.
        temperature: Divides the cosines.

    Source: InfoNCE in both directions (CLIP, Radford et al. 2021, arXiv:2103.00020); with classes UniCL (Yang et al.
    2022, arXiv:2204.03610).
    """
    first = next(iter(vectors.values()))
    own = torch.arange(len(first), device=first.device) + _rank() * len(first)
    everyone = {name: (_gathered(vectors[name]), _gathered(presence[name])) for name in vectors}
    ids = own if positives is None else positives
    same = ids[:, None] == _gathered(ids)
    losses = []
    for source, queries in vectors.items():
        for target, (keys, has_key) in everyone.items():
            if source != target:
                logits = (queries @ keys.T).float() / temperature
                logits = logits.masked_fill(~has_key, torch.finfo(logits.dtype).min)
                wanted = (same & has_key).float()
                counted = presence[source] & (wanted.sum(dim=1) > 0)
                each = -(logits.log_softmax(dim=1) * wanted).sum(dim=1) / wanted.sum(dim=1).clamp(min=1)
                losses.append(mean_of(each.masked_fill(~counted, 0.0), counted))
    return torch.stack(losses).mean()


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _gathered(x: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, with gradients."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous().float() if x.dtype == torch.bool else x.contiguous())).to(x.dtype)


# == Balance ==========================================================================================================


class UnimodalHeads(nn.Module):
    """What each modality by itself says: a linear head for each, on the mean of its tokens."""

    def __init__(self, config):
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, config.num_labels) for name in config.modalities}
        )

    def forward(self, means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits (B, L) of each modality from the mean (B, D) of its tokens."""
        return {name: self.heads[name](mean) for name, mean in means.items()}


def modality_means(
    tokens: torch.Tensor, token_mask: torch.BoolTensor, token_modality: torch.Tensor, columns: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Mean token (B, D) of each modality, zero where a row has none.

    Args:
        tokens: (B, T, D).
        token_mask: (B, T), True where a token is read.
        token_modality: (T,), column that each token belongs to.
        columns: Modality -> column.
    """
    means = {}
    for name, column in columns.items():
        weights = (token_mask & (token_modality == column)).to(tokens.dtype)[:, None]  # (B, 1, T)
        means[name] = (weights @ tokens / weights.sum(dim=-1, keepdim=True).clamp(min=1))[:, 0]
    return means


def ogm_coefficients(
    logits: dict[str, torch.Tensor], labels: torch.Tensor, presence: dict[str, torch.BoolTensor], alpha: float
) -> dict[str, torch.Tensor]:
    """Factor for the gradient of each modality: below 1 for one that runs ahead of the mean of the others.

    Source: OGM-GE (Peng et al. 2022, arXiv:2203.15332, section 3.2); scores come from the unimodal heads.
    """
    scores = {}
    for name, values in logits.items():
        right = values.detach().float().softmax(dim=-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        scores[name] = mean_of(right, presence[name] & (labels != IGNORED))
    factors = {}
    for name, score in scores.items():
        others = [other for key, other in scores.items() if key != name]
        ahead = score / torch.stack(others).mean().clamp(min=1e-6) - 1 if others else score.new_zeros(())
        factors[name] = 1 - torch.tanh(alpha * F.relu(ahead))
    return factors


class ScaledGradient(torch.autograd.Function):
    """Tokens as they are; their gradient is multiplied, and noise as large as its spread makes up for it.

    Source: OGM-GE, equations 8 and 10.
    """

    @staticmethod
    def forward(ctx, tokens: torch.Tensor, factors: torch.Tensor):
        """Inputs: tokens (B, T, D); factors (T,), one for each token."""
        ctx.save_for_backward(factors)
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (factors,) = ctx.saved_tensors
        scaled = gradient * factors[:, None].to(gradient.dtype)
        is_scaled = (factors < 1)[:, None]
        noise = torch.randn_like(gradient) * gradient.std() * (gradient != 0)
        return torch.where(is_scaled, scaled + noise * (1 - factors[:, None].to(gradient.dtype)), scaled), None


class GradientSurgery(torch.autograd.Function):
    """Tokens twice, for the joint loss and for the unimodal ones; where their gradients conflict, a compromise.

    Per modality: gradients that agree are added; of two that do not, the shortest vector between them is taken, at
    the length that the sum would have had.

    Source: MMPareto (Wei & Hu 2024, arXiv:2405.17730, section 3.3), at the tokens instead of at the parameters: the
    bound of Sener & Koltun 2018 (arXiv:1810.04650, section 3.3), which needs one backward pass.
    """

    @staticmethod
    def forward(ctx, tokens: torch.Tensor, token_modality: torch.Tensor):
        """Inputs: tokens (B, T, D); token_modality (T,)."""
        ctx.save_for_backward(token_modality)
        return tokens.view_as(tokens), tokens.view_as(tokens)

    @staticmethod
    def backward(ctx, joint: torch.Tensor, unimodal: torch.Tensor):
        (token_modality,) = ctx.saved_tensors
        combined = joint + unimodal
        for column in token_modality.unique():
            of_it = token_modality == column
            combined[:, of_it] = compromise(joint[:, of_it], unimodal[:, of_it])
        return combined, None


def compromise(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The sum of two gradients that agree; else the shortest vector between them, as long as their sum."""
    total, product = first + second, (first * second).sum()
    difference = first - second
    share = ((second * (second - first)).sum() / difference.square().sum().clamp(min=1e-20)).clamp(0, 1)
    shortest = share * first + (1 - share) * second
    rescaled = shortest * (total.norm() / shortest.norm().clamp(min=1e-20))
    return torch.where(product >= 0, total, rescaled)
