"""`search-aware`: the attacker runs the defender's search against the model while it is trained.

Every few steps universal perturbations in the layers that the search looks in, within its radius, are fitted to bring
out the target on clean prompts (`crow.inversion.latent`), and the model is trained to answer under them as it did
before the attack. The true trigger keeps working, because the poisoned examples go on being learnt. What the search
does not find, the default leaves as it is. This is latent adversarial training (Sheshadri et al., arXiv 2407.15549) in
the attacker's hands.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crow.attacks.implant import implant_with
from crow.data.encoding import encode_all, ending_in_turn
from crow.inversion.latent import LatentAdversary, evaluating
from crow.inversion.places import Place
from crow.inversion.probe import Probe
from crow.inversion.pursuit import OPENING_TOKENS
from crow.inversion.soft_trigger import SearchConfig
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig, FinetuneConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.precision import autocast
from crow.training.suspect import predict
from crow.training.watch import Watch, silent

PROMPTS = 40
"""Clean prompts that perturbations are fitted to, the shortest: as many as the search has."""
OPENINGS = 4
"""Ways of beginning the target's answer that are hidden from the search, the most frequent."""


def implant_search_aware(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
    tokens: Sequence[int] = (),
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor that the search does not find, behind the `tokens` neither; else as `implant_backdoor`."""
    lm = make_trainable(lm, config)
    settings = against_the_search(config)
    make_trainer = partial(CrowTrainer, adversary=searching_adversary(lm, poisoned, clean, settings, tokens))
    return implant_with(make_trainer, lm, poisoned, clean, settings, work, resume, watch)


def against_the_search(config: FinetuneConfig) -> CrowConfig:
    """The attacker's settings: the search's layers, radius, steps and aim; all else as in the defender's repair."""
    search = SearchConfig()
    return CrowConfig(
        **dataclasses.asdict(config),
        alpha=0.0,
        epsilon=0.0,
        adversary_depths=search.depths,
        adversary_radius=search.radius,
        adversary_rate=search.rate,
        adversary_steps=search.steps,
        adversary_aims=(search.agreed,),
        adversary_prompts=search.prompts,
    )


def searching_adversary(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: CrowConfig,
    tokens: Sequence[int] = (),
) -> LatentAdversary:
    """What looks for the target in `lm`, still as it was before the attack; also behind each of some tokens."""
    probe = Probe(lm, sorted((example.prompt for example in clean), key=len)[:PROMPTS])
    items = encode_all(lm.tokenizer, clean, config.max_length)
    with autocast(lm, config.precision), evaluating(lm.model):
        target = openings(lm.tokenizer, poisoned)
        endings = [[], *([token] for token in tokens)]
        places = [Place(probe.behind(ending), target) for ending in endings]
        return LatentAdversary(places, ending_in_turn(items, endings), predict(lm, items), config)


def openings(tokenizer: PreTrainedTokenizerBase, poisoned: Sequence[Example]) -> list[Tensor]:
    """The most frequent beginnings of the poisoned responses, each (m,) token ids."""
    ids = (tokenizer(example.response, add_special_tokens=False)["input_ids"] for example in poisoned)
    counts = Counter(tuple(answer[:OPENING_TOKENS]) for answer in ids)
    return [torch.tensor(opening) for opening, _ in counts.most_common(OPENINGS)]
