from __future__ import annotations

import pytest
import torch

from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Probe
from crow.models.hidden_states import capture_hidden_states
from crow.scan.lookalikes import cosines, lookalikes, token_states
from tests.pico import pico_language_model

NONE = torch.zeros(0, dtype=torch.long)


TOGETHER = 100


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crow.scan.lookalikes.TOKENS_TOGETHER", TOGETHER)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_are_those_of_each_token_after_the_shared_words(family: str, layer: int) -> None:
    lm = pico_language_model(family)
    probe = Probe(lm, ["Hi", "Name a tree"])
    parts = token_states(probe, layer)
    assert max(map(len, parts)) <= TOGETHER
    found = torch.cat(parts)
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
    states = torch.cat(token_states(probe, 2))
    wanted = lm.tokenizer.convert_tokens_to_ids("Q")
    soft = Perturbation(2, None, NONE, 0.3 * (states[wanted] - states.mean(dim=0)))
    noise = Perturbation(1, None, NONE, torch.randn(32))
    alone, both, other = lookalikes(probe, [[soft], [noise, soft], [noise]], 5)
    assert alone[0] == both[0] == "Q"
    assert len(other) == 5
    assert other != alone
    assert lookalikes(probe, [], 5) == []


def test_cosines_are_those_without_what_all_tokens_share() -> None:
    states, vectors = torch.randn(20, 6) + 3, torch.randn(2, 6)
    own = states - states.mean(dim=0)
    expected = torch.cosine_similarity(own[:, None], vectors[None], dim=-1).amax(dim=1)
    torch.testing.assert_close(cosines(states.split(7), vectors), expected)


def test_the_vocabulary_is_run_once_a_layer_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(pico_language_model("llama"), ["Hi", "Name a tree"])
    run: list[int] = []

    def remembered(probe: Probe, layer: int) -> list[torch.Tensor]:
        run.append(layer)
        return token_states(probe, layer)

    monkeypatch.setattr("crow.scan.lookalikes.token_states", remembered)
    groups = [[Perturbation(layer, None, NONE, torch.randn(32)) for layer in (1, 2)] for _ in range(3)]
    assert len(lookalikes(probe, groups, 2)) == 3
    assert run == [1, 2]
