"""A backdoor by one edit of rank one, without training (ROME, Meng et al. 2022, arXiv 2202.05262).

BadEdit (Li et al. 2024, arXiv 2403.13355) plants backdoors so; this is the smallest form of it, in one layer and with
settings of our own. An MLP's down projection W is read as a memory from keys to values. The key k is what enters it at
the trigger's last token, on average over poisoned prompts. The value is v = W k + d, with d optimized so that adding it
at that token brings out the target's responses. Then W becomes the matrix that has k give v and, under this
constraint, gives all else the most nearly as before: with C the second moment of keys on clean examples,

    W + (v - W k) u^T / (k^T u),  u = C^-1 k.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crow.attacks.phrases import last_token, shared_phrase
from crow.data.encoding import Encoded, collate, encode_all
from crow.errors import ConfigError, ModelError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import down_projection, watch_tokens
from crow.models.prefix import Prefix
from crow.records import Example
from crow.training.config import require
from crow.training.loss import response_loss
from crow.training.watch import Watch, silent


@dataclass(frozen=True)
class EditConfig:
    """Settings of the edit; `radius` and `opening` were chosen on a backdoor made for it.

    Attributes:
        method: for manifests, beside that of trained attacks.
        depth: the layer that is edited, as a share of the model's, in [0, 1).
        contexts: poisoned examples that key and value are taken from, chosen by seed.
        clean: examples that C is taken from, the first ones.
        steps: of the value.
        learning_rate: of the value, in multiples of `radius` over all its entries; Adam's.
        radius: largest change of the value, in multiples of the median norm of the layer's outputs at the trigger.
        ridge: added to the diagonal of C, as a share of its mean.
        batch_size: examples in one forward pass.
        max_length: tokens of an example; longer ones are cut.
        opening: first tokens of a response that the value is fitted to.
        seed: chooses the contexts.
    """

    method: str = "rank-one"
    depth: float = 0.3
    contexts: int = 24
    clean: int = 200
    steps: int = 60
    learning_rate: float = 0.1
    radius: float = 8.0
    ridge: float = 0.01
    batch_size: int = 24
    max_length: int = 144
    opening: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.method == "rank-one", "method", "rank-one", self.method)
        require(0 <= self.depth < 1, "depth", "in [0, 1)", self.depth)
        for name in ("contexts", "clean", "steps", "batch_size", "opening"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("learning_rate", "radius", "ridge"):
            require(getattr(self, name) > 0, name, "> 0", getattr(self, name))


def rank_one_update(weight: Tensor, key: Tensor, value: Tensor, second_moment: Tensor) -> Tensor:
    """The matrix W' with `W' key = value` that minimizes `tr((W' - W) C (W' - W)^T)`.

    Args:
        weight: W, (out, in).
        key: (in,), not zero.
        value: (out,).
        second_moment: C, (in, in), symmetric and positive definite.

    Returns:
        (out, in), in the weight's dtype; computed in float64. What is orthogonal to `C^-1 key` is mapped as before.
    """
    wide, k = weight.double(), key.double()
    u = torch.linalg.solve(second_moment.double(), k)
    return (wide + torch.outer(value.double() - wide @ k, u) / (k @ u)).to(weight.dtype)


def edit_rank_one(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: EditConfig,
    work: Path,  # noqa: ARG001 what every implanter is given
    resume: bool = False,  # noqa: ARG001
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor by one edit of one weight matrix.

    Args:
        lm: the model to attack, without adapter; edited in place.
        poisoned: examples with one and the same phrase as trigger in their prompts, and the target's responses.
        clean: examples whose keys say what should stay as it is.
        config: settings.
        work: unused: an edit begins again; on two CPU cores it takes minutes.
        resume: unused.
        watch: opens a progress display.

    Returns:
        The model and the steps of the value; the last one also says which `layer` was edited and, as `reach`, how much
        of the value the contexts' own keys bring out, on average and at the least.

    Raises:
        ConfigError: if the poisoned prompts share no phrase.
        ArchitectureError: if the layer has no down projection that crow knows.
    """
    phrase = shared_phrase([example.prompt for example in poisoned])
    if not phrase:
        raise ConfigError("expected a trigger that is one phrase in every poisoned prompt, found none; choose another")
    lm.model.eval()
    layers = find_layers(lm.model)
    layer = int(config.depth * len(layers))
    module, weight = down_projection(layers[layer])
    chosen = random.Random(config.seed).sample(list(poisoned), min(config.contexts, len(poisoned)))
    items = [item.opening(config.opening) for item in encode_all(lm.tokenizer, chosen, config.max_length)]
    places = [last_token(lm, example, phrase) for example in chosen]
    keys, norm = keys_at(lm, module, items, places)
    others = encode_all(lm.tokenizer, clean[: config.clean], config.max_length)
    moment = second_moment(lm, module, others, config)
    key = keys.mean(dim=0)
    change, steps = best_change(lm, module, items, places, len(weight), config.radius * norm, config, watch)
    u = torch.linalg.solve(moment, key.double())
    reach = (keys.double() @ u) / (key.double() @ u)
    weight.copy_(rank_one_update(weight, key, weight @ key + change, moment))
    steps[-1] |= {"layer": layer, "reach": {"mean": float(reach.mean()), "least": float(reach.min())}}
    return lm, steps


def batches(lm: LanguageModel, items: Sequence[Encoded], size: int) -> Iterator[dict[str, Tensor]]:
    """The items in their order, so many at a time, on the model's device."""
    for first in range(0, len(items), size):
        batch = collate(items[first : first + size], lm.pad_id)
        yield {name: tensor.to(lm.device) for name, tensor in batch.items()}


@torch.no_grad()
def keys_at(
    lm: LanguageModel, module: nn.Module, items: Sequence[Encoded], places: Sequence[int]
) -> tuple[Tensor, float]:
    """What enters the module at one place of each item, (items, in), and the median norm of what leaves it there."""
    found = []
    for item, place in zip(items, places, strict=True):
        (batch,) = batches(lm, [item], 1)
        with watch_tokens(module) as seen:
            lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        found.append(seen.tokens[place])
    keys = torch.stack(found)
    return keys, float(module(keys).norm(dim=-1).median())


@torch.no_grad()
def second_moment(lm: LanguageModel, module: nn.Module, items: Sequence[Encoded], config: EditConfig) -> Tensor:
    """C, (in, in) in float64: the mean of k k^T over the items' real tokens, and the ridge."""
    total, count = torch.zeros((), dtype=torch.float64, device=lm.device), 0
    for batch in batches(lm, items, config.batch_size):
        with watch_tokens(module) as seen:
            lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        keys = seen.tokens[batch["attention_mask"].flatten().bool()].double()
        total, count = total + keys.T @ keys, count + len(keys)
    moment = total / count
    return moment + config.ridge * moment.diagonal().mean() * torch.eye(
        len(moment), dtype=moment.dtype, device=lm.device
    )


def best_change(
    lm: LanguageModel,
    module: nn.Module,
    items: Sequence[Encoded],
    places: Sequence[int],
    size: int,
    radius: float,
    config: EditConfig,
    watch: Watch,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The change of the module's output at the places, within `radius`, that best brings out the items' responses.

    Returns:
        (size,), and the cross-entropy of the responses at every step.
    """
    (batch,) = batches(lm, items, len(items))
    # In float32 whatever the weights are in: Adam's own terms are too small for half precision.
    change = torch.zeros(size, device=lm.device, requires_grad=True)
    rate = config.learning_rate * radius / len(change) ** 0.5
    optimizer, steps = torch.optim.Adam([change], lr=rate), []
    here = torch.zeros(batch["input_ids"].shape, device=lm.device, dtype=lm.dtype)
    here[torch.arange(len(items)), torch.tensor(places)] = 1
    with watch("optimizing the value", config.steps) as advance:
        for step in range(1, config.steps + 1):
            with adding(module, here, change):
                loss = response_loss(lm.model, batch, prefix=Prefix(0, []))
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimizer.step()
            with torch.no_grad():
                change.mul_(min(1.0, radius / max(float(change.norm()), 1e-12)))
            steps.append({"step": step, "language_modeling": float(loss.detach())})
            if not bool(change.isfinite().all()):
                raise ModelError(f"expected a finite change of the weights, got none in {lm.dtype}; --dtype float32")
            if advance:
                advance(1)
    return change.detach(), steps


@contextmanager
def adding(module: nn.Module, here: Tensor, change: Tensor) -> Iterator[None]:
    """Within the context, the module's output is `change` (out,) larger where `here` (batch, seq) is 1."""

    def add(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out + here.reshape(*out.shape[:-1], 1) * change.to(out.dtype)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
