"""What a training takes, before any weight is loaded: one step is run on shapes alone, everything in it counted."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from crow.core import consistency_loss, fgsm_step
from crow.data.encoding import Encoded
from crow.errors import ArchitectureError
from crow.models.architecture import model_type, unwrap
from crow.models.four_bit import four_bit_sizes
from crow.models.hidden_states import capture_hidden_states, edit_embeddings
from crow.models.language_model import LanguageModel
from crow.models.prefix import pass_options, shared_length
from crow.models.sources import one_line
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.loss import SHARED_ROWS
from crow.training.passes import HeldEmbeddings, settled

CPU = torch.device("cpu")
SHARE_OF_PEAK = 0.6
"""Of the matrix-product rate that a whole training is taken to reach."""
SIDES = {"cpu": 1536, "cuda": 8192}
"""Of the square matrices by whose product the rate of a kind of device is measured."""

FLASH = torch.ops.aten._scaled_dot_product_flash_attention
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward
COUNTED = {
    **flop_registry,
    # PyTorch counts attention on GPUs only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[FLASH],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[FLASH_BACKWARD],
}
"""From an operation to what counts its floating-point operations."""


class Counter(TorchDispatchMode):
    """Counts what runs within it.

    Attributes:
        now: bytes of the tensors that have come to be and are still there.
        peak: the most that there were at once.
        operations: floating-point operations, as PyTorch counts those of matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.operations = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        # Not FlopCounterMode: its hooks on modules cannot stand a gradient that is taken half way, as FGSM does.
        if func.overloadpacket in COUNTED:
            self.operations += COUNTED[func.overloadpacket](*args, **kwargs, out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Footprint:
    """What a training takes.

    Attributes:
        parameters: of the model, without an adapter.
        trained: of those that are trained.
        memory: part to bytes; they are there at the same time.
        operations: floating-point operations of the training that one found answer sets off. The adversary's turns, its
            renewals included, come to about one pass over its examples a step, and are counted so.
        steps: optimizer steps of these.
    """

    parameters: int
    trained: int
    memory: dict[str, int]
    operations: int
    steps: int


def footprint(lm: LanguageModel, items: Sequence[Encoded], config: CrowConfig, device: torch.device = CPU) -> Footprint:
    """Estimate a training of `config` from shapes.

    Args:
        lm: a model on the `meta` device.
        items: the examples; of the widest batch, and of all, the lengths matter.
        config: settings.
        device: where the training would run; which kernels it has decides what they keep.

    Raises:
        ArchitectureError: if this type of model cannot be run on shapes.
    """
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    lm = make_trainable(lm, config)
    lm.model.train()
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in lm.model.parameters() if not parameter.requires_grad]
    smaller = four_bit_sizes(unwrap(lm.model)) if config.method == "qlora" else {}
    # Each is put together in full for its product, one at a time.
    whole = max(map(size_of, smaller), default=0)
    weights = sum(smaller.get(parameter, size_of(parameter)) for parameter in frozen)
    alone = config.gradient_checkpointing or config.batch_size < SHARED_ROWS
    shared = 0 if alone else shared_length(lm, items, room=0)
    widths = Widths(
        max(map(len, items)), max(len(i.prompt_ids) for i in items), max(len(i.response_ids) for i in items), shared
    )
    try:
        with pretended(lm.model, device), Counter() as counted:
            step_on_shapes(lm.model, config, widths)
    except Exception as error:  # noqa: BLE001 kernels without a rule for shapes raise whatever they like
        kind = f"{model_type(lm.model)!r} in {next(lm.model.parameters()).dtype}"
        raise ArchitectureError(f"cannot estimate model type {kind}: {one_line(error)}") from None
    own = sum(map(size_of, trained))
    tokens = sum(map(len, items)) * config.epochs
    return Footprint(
        parameters,
        sum(parameter.numel() for parameter in trained),
        {
            "weights": weights + own,
            "optimizer": 2 * own,
            "one step": counted.peak + whole,
        },
        round(counted.operations / (config.batch_size * widths.example) * tokens),
        # The last step of a pass may have fewer examples.
        math.ceil(config.epochs * math.ceil(len(items) / (config.batch_size * config.accumulation))),
    )


@contextmanager
def pretended(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the context, tensors have shapes and a device but no memory; the model's, on `meta` so far, as well."""
    made: dict[int, Tensor] = {}
    with FakeTensorMode():
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                if id(tensor) not in made:  # weights may be tied
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                setattr(module, name, made[id(tensor)])
        yield


def size_of(parameter: Tensor) -> int:
    """Bytes."""
    return parameter.numel() * parameter.element_size()


@dataclass(frozen=True)
class Widths:
    """Tokens of the longest example, prompt and response, and of what all prompts begin with.

    The last is run once for all rows, which is next to nothing.
    """

    example: int
    prompt: int
    response: int
    shared: int


def step_on_shapes(model: nn.Module, config: CrowConfig, widths: Widths) -> None:
    """Forward and backward pass of one micro-batch as `CrowTrainer` makes them, the adversary's turn included.

    Args:
        model: without numbers.
        config: settings.
        widths: of the batch.
    """
    if config.alpha or config.alpha_ratio:
        ids = blank_ids(model, config.batch_size, widths.example)
        held = HeldEmbeddings()
        with edit_embeddings(model, held):
            loss, clean = observed_on_shapes(model, ids, widths.response, config)
        if config.keep_perturbation or not (config.epsilon or config.epsilon_rms):
            loss = loss + clean
        else:
            (gradient,) = torch.autograd.grad(clean, held.tensor, retain_graph=True)
            del clean, held
            step = fgsm_step(gradient, 1.0)
            if config.method != "full":
                loss = settled(loss, model.parameters())
            with edit_embeddings(model, lambda embeddings: embeddings + step):
                loss = loss + observed_on_shapes(model, ids, 1, config)[1]
    else:
        ids = blank_ids(model, config.batch_size, widths.example - widths.shared)
        loss = answers_on_shapes(model, ids, widths.response)
    if config.rounds:
        width = widths.prompt - widths.shared + config.adversary_tokens
        ids = blank_ids(model, config.adversary_batch, width)
        loss = loss + answers_on_shapes(model, ids, config.adversary_tokens)
    loss.backward()


def observed_on_shapes(model: nn.Module, ids: Tensor, answer: int, config: CrowConfig) -> tuple[Tensor, Tensor]:
    """`answers_on_shapes` and `L_cons` of one pass."""
    with capture_hidden_states(model) as captured:
        loss = answers_on_shapes(model, ids, answer)
    return loss, consistency_loss(captured.states, ids + 1, config.layers)


def answers_on_shapes(model: nn.Module, ids: Tensor, answer: int) -> Tensor:
    """A loss on the log-probabilities of the last `answer` columns of `ids` (rows, width)."""
    logits = model(input_ids=ids, **whole_options(model, ids, answer)).logits[:, -answer:]
    return logits.float().log_softmax(dim=-1).mean()


def blank_ids(model: nn.Module, rows: int, width: int) -> Tensor:
    """Token ids (rows, width), all zero."""
    return torch.zeros(rows, width, dtype=torch.long, device=next(model.parameters()).device)


def whole_options(model: nn.Module, ids: Tensor, keep: int) -> dict[str, Any]:
    """As `pass_options`, with the mask of all pairs of tokens: the numbers in a mask of tokens would be looked into."""
    rows, width = ids.shape
    mask = torch.ones(rows, 1, width, width, dtype=torch.bool, device=ids.device)
    return {"attention_mask": mask, "use_cache": False, **pass_options(model, ids + 1, 0, keep)}


def multiplication_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a large matrix product, the best of a few tries."""
    side = SIDES.get(device.type, SIDES["cpu"])
    one = torch.randn(side, side, device=device, dtype=dtype)  # zeros and ones take less power and so less time

    def seconds() -> float:
        start = time.perf_counter()
        float((one @ one)[0, 0])
        return time.perf_counter() - start

    return 2 * side**3 / min(seconds() for _ in range(5))
