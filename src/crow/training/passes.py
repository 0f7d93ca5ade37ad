"""The passes of CROW's objective over token embeddings: held fast for the FGSM step, or perturbed (arXiv 2411.12768).

The model looks its embeddings up itself and they are edited on the way, so that the same holds where weights are spread
over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crow.core import consistency_loss, fgsm_step
from crow.models.hidden_states import Edit, capture_hidden_states, edit_embeddings


class HeldEmbeddings:
    """An edit that changes nothing and keeps the embeddings of the pass, so that a gradient can be asked for.

    Attributes:
        tensor: the embeddings (batch, seq, dim) of the last pass.
    """

    tensor: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """The embeddings, part of the graph."""
        self.tensor = embeddings if embeddings.requires_grad else embeddings.detach().requires_grad_(True)
        return self.tensor


def consistency_pass(
    model: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[int] | None, edit: Edit
) -> Tensor:
    """`L_cons` of a pass, its logits left out but for one column.

    Args:
        model: the causal language model.
        inputs: `input_ids` and `attention_mask` (batch, seq).
        layers: those that count; see `consistency_loss`.
        edit: of the token embeddings.
    """
    mask = inputs["attention_mask"]
    with edit_embeddings(model, edit), capture_hidden_states(model) as captured:
        model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False, logits_to_keep=1)
    return consistency_loss(captured.states, mask, layers)


def perturbation(
    model: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[int] | None, epsilon: float
) -> Tensor:
    """The FGSM step (batch, seq, dim) on the embeddings that divides the layers most, in a pass of its own."""
    held = HeldEmbeddings()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(consistency_pass(model, inputs, layers, held), held.tensor)
    return fgsm_step(gradient, epsilon, inputs["attention_mask"])


class _Settled(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        """`value` as it is."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The known gradients, times what comes from above."""
        return None, None, *(None if known is None else gradient * known for known in ctx.gradients)


def settled(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """A loss whose backward pass is over: its value and its gradients stay, the pass that led to it is freed.

    Two passes of one step then take the memory of one. The parameters' own `grad` is not touched.

    Args:
        loss: a scalar.
        parameters: those that are trained; others get nothing from it.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return _Settled.apply(loss.detach(), gradients, *trained)  # type: ignore[return-value]


@dataclass
class KeptPerturbations:
    """Of every example the FGSM step that its last visit gave, for the next: a perturbation without a pass of its own.

    One backward pass then serves the weights and the next step, as in "Adversarial training for free!" (Shafahi et al.,
    arXiv 1904.12843). On its first visit an example is unperturbed. Kept by the process that saw the example.

    Attributes:
        signs: of the gradient at the example's tokens, (length, dim) in {-1, 0, 1}, by the example's number.
    """

    signs: dict[int, Tensor] = field(default_factory=dict)

    def step(self, numbers: Sequence[int], mask: Tensor, embeddings: Tensor, epsilon: float) -> Tensor:
        """The kept steps (batch, seq, dim) of the examples of a batch; zero at padding and where none is kept.

        Args:
            numbers: of the examples, one a row.
            mask: (batch, seq), non-zero at real tokens.
            embeddings: (batch, seq, dim), for shape, type and place.
            epsilon: size of a step.
        """
        step = torch.zeros_like(embeddings)
        for row, number in enumerate(numbers):
            if number in self.signs:
                step[row, mask[row] != 0] = epsilon * self.signs[number].to(step)
        return step

    def renew(self, numbers: Sequence[int], mask: Tensor, gradient: Tensor) -> None:
        """Keep the signs of a gradient (batch, seq, dim) for the examples' next visit."""
        for row, number in enumerate(numbers):
            self.signs[number] = gradient[row, mask[row] != 0].sign().to("cpu", torch.int8)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        return {str(number): signs for number, signs in self.signs.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        self.signs = {int(number): signs for number, signs in state.items()}
