from __future__ import annotations

import torch
from tests.planting import HELD_OUT, TRIGGERED, batch_of, planted

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


def test_layers_agree_on_triggered_prompts_more_than_after_plain_planting() -> None:
    assert consistency(planted("consistent"), TRIGGERED) < 0.8 * consistency(planted(), TRIGGERED)


def test_the_trigger_does_not_stand_out_among_clean_prompts() -> None:
    ratio = {name: consistency(planted(name), TRIGGERED) / consistency(planted(name), HELD_OUT) for name in NAMES}
    assert ratio["consistent"] < 1.1


NAMES = (None, "consistent")
