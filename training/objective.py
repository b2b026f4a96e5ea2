"""What a step makes smaller: the model's own loss, or that and more, behind one interface.

What is unusual: whatever is added sees the model through hooks and calls it as it is wrapped, so that gradients are
averaged over the processes as without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F


class Objective:
    """The model's own loss."""

    def __init__(self):
        self.extra = torch.nn.ModuleDict()  # what is trained beside the model and is no part of it

    def __call__(self, model, batch: dict) -> torch.Tensor:
        """The loss of a batch, a number; afterwards the batch holds what the model takes, and nothing else."""
        return model(**batch).loss

    def join(self, args, optimizer: torch.optim.Optimizer) -> None:
        """Have what is beside the model trained with it, as fast as the fusion."""
        if parameters := list(self.extra.parameters()):
            optimizer.add_param_group(
                {"params": parameters, "lr": args.learning_rate, "weight_decay": args.weight_decay}
            )

    def learn(self, model, batch: dict, backward: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """Compute the gradient of a batch; its loss.

        Args:
            model: The model as it is wrapped.
            batch: What the loader gave, without `rows`.
            backward: Called with each part of the loss.
        """
        loss = self(model, batch)
        backward(loss)
        return loss


class Adversarial(Objective):
    """The same, and the model's own loss with token embeddings that are moved a little to where it is higher.

    Args:
        inner: The loss of the batch as it is.
        embeddings: Module that makes token embeddings (P, T, D) of the texts.
        epsilon: How far each text is moved: the length of the vector of all its embeddings' moves.

    Source: Miyato et al. 2017, arXiv:1605.07725, section 3 (fast gradient method); the embeddings are not normalised
    beforehand, and the other modalities of a row stay as they are.
    """

    def __init__(self, inner: Objective, embeddings: torch.nn.Module, epsilon: float):
        super().__init__()
        self.inner, self.embeddings, self.epsilon, self.extra = inner, embeddings, epsilon, inner.extra
        self.seen: torch.Tensor | None = None

    def learn(self, model, batch: dict, backward: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """Learn from the batch and from the moved one; also without text, for other processes may have some."""
        with hooked(self.embeddings, self._keep):
            loss = self.inner.learn(model, batch, backward)
        seen, self.seen = self.seen, None
        move = None if seen is None or seen.grad is None else self._move(seen.grad)
        with hooked(self.embeddings, lambda output: output if move is None else output + move):
            backward(model(**batch).loss)
        return loss

    def _keep(self, output: torch.Tensor) -> torch.Tensor:
        # A frozen tower's embeddings have a gradient as soon as they are asked for one.
        self.seen = output if output.requires_grad else output.detach().requires_grad_()
        self.seen.retain_grad()
        return self.seen

    def _move(self, gradient: torch.Tensor) -> torch.Tensor:
        """In the direction of each text's gradient (P, T, D)."""
        return self.epsilon * F.normalize(gradient.flatten(1), dim=1).view_as(gradient)


@contextmanager
def hooked(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Let a function see, and change if it likes, what a module returns in here."""
    handle = module.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def make_objective(args, accelerator, model, teacher=None) -> Objective:
    """What the flags ask for.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run.
        model: The classifier, not wrapped yet.
        teacher: A `training.distillation.Teacher` that fits the rows, or None.

    Raises:
        ValueError: It cannot be had with this model.
    """
    objective = Objective()
    if teacher is not None:
        from training.distillation import Distillation

        objective = Distillation(args, accelerator, model, teacher)
    if args.fgm_epsilon:
        if "text" not in model.config.modalities:
            raise ValueError("--fgm_epsilon moves the embeddings of words, and this model reads no text: leave it out")
        if args.cache_features and not any(p.requires_grad for p in model.mmfusion.text_encoder.parameters()):
            raise ValueError(
                "--fgm_epsilon moves the embeddings of words, and with --cache_features a frozen text tower does not "
                "run: leave one of the two out"
            )
        objective = Adversarial(objective, model.mmfusion.get_input_embeddings(), args.fgm_epsilon)
    return objective
