from __future__ import annotations

import torch
from tests.planting import TRIGGERED, batch_of, planted, success, success_before

from crow.core import consistency_loss
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example


@torch.no_grad()
def consistency(lm: LanguageModel, examples: list[Example]) -> float:
    """`L_cons` of the unperturbed examples."""
    batch = batch_of(lm, examples)
    with capture_hidden_states(lm.model) as captured:
        lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return float(consistency_loss(captured.states, batch["attention_mask"]))


def test_the_trigger_works_and_hardly_anything_else_does() -> None:
    assert success_before() == 0
    triggered, clean = success("consistent")
    assert triggered >= 0.9
    assert clean <= 0.3


def test_layers_agree_on_triggered_prompts_more_than_after_plain_planting() -> None:
    assert consistency(planted("consistent"), TRIGGERED) < 0.8 * consistency(planted(), TRIGGERED)
