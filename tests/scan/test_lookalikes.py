from __future__ import annotations

import pytest
import torch

from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Probe
from crow.models.hidden_states import capture_hidden_states
from crow.scan.lookalikes import lookalikes, token_states
from tests.pico import pico_language_model

NONE = torch.zeros(0, dtype=torch.long)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_are_those_of_each_token_after_the_shared_words(family: str, layer: int) -> None:
    lm = pico_language_model(family)
    probe = Probe(lm, ["Hi", "Name a tree"])
    found = token_states(probe, layer)
    assert len(found) == len(probe.table.weight)
    for token in (5, 60, 200):
        with torch.no_grad(), capture_hidden_states(lm.model) as captured:
            lm.model(input_ids=torch.tensor([[*probe.shared, token]]), use_cache=False)
        torch.testing.assert_close(found[token], captured.states[layer][0, -1], rtol=1e-4, atol=1e-4)
    again = lm.model(input_ids=torch.tensor([[5, 6]])).logits  # the hook is gone
    assert again.shape[1] == 2


def test_the_token_whose_state_a_soft_trigger_is_comes_first() -> None:
    lm = pico_language_model("llama")
    probe = Probe(lm, ["Hi", "Name a tree"])
    states = token_states(probe, 2)
    wanted = lm.tokenizer.convert_tokens_to_ids("Q")
    soft = Perturbation(2, None, NONE, 0.3 * (states[wanted] - states.mean(dim=0)))
    noise = Perturbation(1, None, NONE, torch.randn(32))
    assert lookalikes(probe, [soft], 5)[0] == "Q"
    assert lookalikes(probe, [noise, soft], 5)[0] == "Q"
    assert lookalikes(probe, [], 5) == []
