"""What training asks of the model: the task's loss row by row, and what keeps the modalities in balance.

But for heads and their temperatures, nothing here runs when a model is used. Losses come row by row, so that a row
without a label can be left out and two fusions of one row can be compared. What turns gradients sits on the tokens,
between towers and fusion: there the gradient of each modality passes as a whole, and the towers are run backwards
once.

Shape legend: B batch rows, T tokens, D fusion width, M = 3 modalities, L labels.
"""

import copy
from collections.abc import Callable, Sequence

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
    columns = torch.arange(presence.shape[1], device=presence.device)
    lucky = (draw.argmax(dim=1, keepdim=True) == columns) & presence  # unlike `one_hot`, it does not ask for values
    return torch.where(kept.any(dim=1, keepdim=True), kept, lucky)


# == Losses ===========================================================================================================


def row_losses(logits: torch.Tensor, labels: torch.Tensor, config) -> tuple[torch.Tensor, torch.BoolTensor]:
    """(Loss of each row (B,), whether it has a label (B,)); without one the loss is 0.

    Args:
        logits: (B, L).
        labels: (B,) class numbers, `IGNORED` for none; or floats (B, L), or (B,) of a regression, NaN for none. Of
            several tasks floats (B, columns of `config.each_task()`), NaN for none.
        config: Says problem type, `label_smoothing`, `class_weights` and whether the classes are `ordinal`; or the
            tasks, whose losses are added up by their weights.
    """
    if config.tasks is not None:
        return _losses_of_tasks(logits, labels, config)
    logits, problem = logits.float(), config.problem_type
    if problem is None:  # by the rule of `transformers`
        classes = "multi_label" if labels.is_floating_point() else "single_label"
        problem = "regression" if logits.shape[1] == 1 else f"{classes}_classification"
    if problem == "single_label_classification":
        weights = config.class_weights and torch.tensor(config.class_weights, device=logits.device)
        losses = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORED, reduction="none", label_smoothing=config.label_smoothing
        )
        if config.ordinal:
            far = earth_movers_distances(logits, labels)
            losses = losses + (far if weights is None else far * weights[labels.clamp(min=0)])
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


def _losses_of_tasks(logits: torch.Tensor, labels: torch.Tensor, config) -> tuple[torch.Tensor, torch.BoolTensor]:
    """As `row_losses`: of each row the weighted sum over the tasks whose label it has."""
    if labels.shape != (len(logits), config.each_task()[-1].labels.stop):
        raise ValueError(
            f"`labels` must be of shape {(len(logits), config.each_task()[-1].labels.stop)}, the columns of all tasks "
            f"side by side, got {tuple(labels.shape)}"
        )
    total, has_any = logits.new_zeros(len(logits), dtype=torch.float32), torch.zeros_like(labels[:, 0]).bool()
    for task in config.each_task():
        own = labels[:, task.labels]
        if task.config.problem_type == "single_label_classification":
            own = own[:, 0].masked_fill(own[:, 0].isnan(), IGNORED).long()
        losses, has_label = row_losses(logits[:, task.outputs], own, task.config)
        total, has_any = total + task.weight * losses, has_any | has_label
    return total, has_any


def earth_movers_distances(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far the probability lies from the true class (B,), from 0 to L - 1; 0 for a row without a label.

    It is the squared difference of the two cumulative distributions, summed over the steps between classes. The
    farther a class is from the true one, the more of these steps lie between them.

    Args:
        logits: (B, L), the classes in their order.
        labels: (B,) class numbers, `IGNORED` for none.

    Source: Hou, Yu & Samaras 2016, arXiv:1611.05916, section 3: beside the cross-entropy, all steps of length 1.
    """
    below = logits.softmax(dim=-1).cumsum(dim=-1)[:, :-1]  # (B, L - 1), the probability up to each step
    is_below = torch.arange(below.shape[1], device=labels.device) >= labels[:, None]
    return (below - is_below.float()).square().sum(dim=-1).masked_fill(labels == IGNORED, 0.0)


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

    def narrowed(self, outputs: slice) -> "UnimodalHeads":
        """The same with some of the outputs; the weights are shared."""
        some = copy.copy(self)
        heads = {name: narrowed(head, outputs) for name, head in self.heads.items()}
        some._modules = {**self._modules, "heads": nn.ModuleDict(heads)}
        return some


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
        # Which modalities there are is not asked of the device: a mask for each pair of tokens says whose they are.
        together = (token_modality[:, None] == token_modality).float()  # (T, T)

        def of_each_modality(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (together @ (a.float() * b.float()).sum(dim=(0, 2)))[:, None]  # (B, T, D) -> (T, 1)

        return compromise(joint, unimodal, of_each_modality).to(joint.dtype), None


def inner_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of two tensors as a whole."""
    return (a * b).sum()


def compromise(first: torch.Tensor, second: torch.Tensor, product: Callable = inner_product) -> torch.Tensor:
    """The sum of two gradients that agree; else the shortest vector between them, as long as their sum.

    Args:
        first: A gradient.
        second: The other, of the same shape.
        product: Inner product of two such tensors; where it gives one for each part, parts are treated by themselves.
    """
    total, difference = first + second, first - second
    share = (product(second, -difference) / product(difference, difference).clamp(min=1e-20)).clamp(0, 1)
    shortest = share * first + (1 - share) * second
    rescaled = shortest * (product(total, total).sqrt() / product(shortest, shortest).sqrt().clamp(min=1e-20))
    return torch.where(product(first, second) >= 0, total, rescaled)


# == Heads in use =====================================================================================================


def calibrated(logits: torch.Tensor, presence: torch.BoolTensor, config, modalities: Sequence[str]) -> torch.Tensor:
    """Logits (B, L), those of each task divided by the temperature of what a row has, where some were fitted.

    Args:
        logits: (B, L).
        presence: (B, M), True where the row has the modality.
        config: Of the model; its tasks hold `temperatures`.
        modalities: Names of the columns of `presence`.
    """
    parts = []
    for task in config.each_task():
        own, temperatures = logits[:, task.outputs], task.config.temperatures
        parts.append(own / _of_subset(presence, temperatures, modalities).to(own.dtype) if temperatures else own)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _of_subset(presence: torch.BoolTensor, temperatures: dict[str, float], modalities: Sequence[str]) -> torch.Tensor:
    """(B, 1), the temperature of what each row has; 1 where none was fitted."""
    table = torch.ones(2 ** len(modalities))
    for name, temperature in temperatures.items():
        table[sum(2 ** modalities.index(modality) for modality in name.split("+"))] = temperature
    bits = torch.tensor([2**i for i in range(len(modalities))], device=presence.device)
    numbers = (presence * bits).sum(dim=1)  # (B,); CUDA has no matrix product of integers
    return table.to(presence.device)[numbers][:, None]


def narrowed(linear: nn.Linear, outputs: slice) -> nn.Linear:
    """A layer with some of the outputs of another, whose weights it shares."""
    some = nn.Linear(linear.in_features, len(linear.bias[outputs]), device="meta")
    some.weight, some.bias = (nn.Parameter(whole.detach()[outputs]) for whole in (linear.weight, linear.bias))
    return some
