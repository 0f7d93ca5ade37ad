from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from crow.inversion import consensus
from crow.inversion.consensus import Opening, directions, first_tokens, read, screen, search_soft_triggers
from crow.inversion.perturbation import Perturbation, addition, log_likelihood, user_spans
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SearchResult, read_answers
from crow.models.ends import end_ids
from crow.models.hidden_states import edit_hidden_states
from crow.models.language_model import LanguageModel
from tests.backdoor import SEARCH, SENTENCE, trained_pico, training_examples
from tests.pico import pico_language_model

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d", "Thanks.", "the other one"]
SMALL = SearchConfig(candidates=12, starts=3, depths=(0.3, 0.6), prompts=4, steps=1, answer_tokens=6)


def probe_on(lm: LanguageModel) -> Probe:
    lm.model.requires_grad_(False)
    return Probe(lm, PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_the_screen_tells_on_what_answers_agree_after_a_step_towards_their_first_token(family: str) -> None:
    probe = probe_on(pico_language_model(family))
    fitted, layer, radius = [0, 1, 2], 1, 2.5
    rows = [probe.row(i) for i in fitted]
    mask = user_spans(probe, fitted, max(map(len, rows)), None, random.Random(0))

    def agreement(perturbation: Perturbation) -> tuple[list[int], float]:
        """One token after the other, each by a pass over the whole sequence."""
        said, total = perturbation.target[:1], 0.0
        for _ in range(config.screened):
            rows = [probe.row(i, said) for i in fitted]
            longer = torch.nn.functional.pad(mask, (0, 0, 0, len(said)))
            edit = addition(longer * perturbation.vector)
            with torch.no_grad(), edit_hidden_states(probe.lm.model, {layer: edit}):
                mean = probe.run(rows)[0][:, -1].softmax(dim=-1).mean(dim=0)
            if int(said[-1]) not in end_ids(probe.lm):
                total += float(mean.max().log())
                said = torch.cat([said, mean.argmax()[None]])
        return said.tolist(), total

    config = SearchConfig(screened=4, agreed=3)
    candidates = first_tokens(probe, 6)
    counted: list[int] = []
    ways = directions(probe, fitted, [layer, 2], candidates)
    steps = {token: radius * ways[token][layer] for token in candidates}
    found = screen(probe, fitted, layer, steps, config, counted.append)
    assert [int(opening.perturbation.target[0]) for opening in found] == candidates
    assert sum(counted) == 6
    for opening in found:
        agreed, total = agreement(opening.perturbation)
        assert opening.agreement == pytest.approx(total, abs=1e-4)
        assert opening.perturbation.target.tolist() == agreed[:3]
        assert float(opening.perturbation.vector.norm()) == pytest.approx(radius, rel=1e-4)
        towards = dataclasses.replace(opening.perturbation, target=opening.perturbation.target[:1])
        nudged = dataclasses.replace(towards, vector=0.01 * towards.vector)
        still = dataclasses.replace(towards, vector=0 * towards.vector)
        assert log_likelihood(probe, [nudged], fitted).mean() > log_likelihood(probe, [still], fitted).mean()


def test_directions_are_those_of_finite_differences_in_every_layer() -> None:
    probe = probe_on(pico_language_model("llama"))
    fitted, candidates = [0, 3], [10, 77]
    ways = directions(probe, fitted, [1, 2], candidates)
    generator = torch.Generator().manual_seed(0)
    assert list(ways) == candidates
    for token, found in ways.items():
        for layer, way in found.items():

            def slope(along: Tensor, token: int = token, layer: int = layer) -> float:
                ends = [Perturbation(layer, None, torch.tensor([token]), sign * 1e-2 * along) for sign in (1, -1)]
                high, low = (float(log_likelihood(probe, [end], fitted).mean()) for end in ends)
                return (high - low) / 2e-2

            assert float(way.norm()) == pytest.approx(1, rel=1e-4)
            other = torch.randn(way.shape, generator=generator)
            other = other / other.norm()
            steepest = slope(way)
            assert steepest > 0
            assert slope(other) == pytest.approx(steepest * float(way @ other), abs=0.02 * steepest)


@pytest.mark.parametrize(
    ("shortlist", "expected"),
    [
        (4, [(3, 1), (3, 2), (1, 1), (1, 2)]),
        (2, [(1, 1), (1, 2), (0, 1), (0, 2)]),  # the fourth is not among the best two at the first depth
    ],
)
def test_the_candidates_after_which_answers_agree_most_are_followed_at_every_depth(
    shortlist: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {1: [-3.0, -2.0, -9.0, -8.0], 2: [-9.0, -4.0, -9.0, -1.0]}
    asked: dict[int, list[int]] = {}

    def screened(_probe: Probe, _fitted: object, layer: int, steps: dict[int, Tensor], *_rest: object) -> list[Opening]:
        asked[layer] = list(steps)
        return [
            Opening(Perturbation(layer, None, torch.tensor([token, 7, 8]), torch.ones(32)), scores[layer][token])
            for token in steps
        ]

    monkeypatch.setattr(consensus, "screen", screened)
    monkeypatch.setattr(consensus, "first_tokens", lambda _probe, count: list(range(count)))
    config = dataclasses.replace(SMALL, candidates=4, shortlist=shortlist, starts=2, depths=(0.3, 0.6))
    result = search_soft_triggers(probe_on(pico_language_model("llama")), config, 0)
    assert [(int(t.perturbation.target[0]), t.perturbation.layer) for t in result.triggers] == expected
    assert asked == {1: [0, 1, 2, 3], 2: [1, 0, 3, 2][:shortlist]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_perturbations_read_together_are_read_as_if_alone(family: str) -> None:
    probe = probe_on(pico_language_model(family))
    generator = torch.Generator().manual_seed(0)
    perturbations = [
        Perturbation(layer, None, torch.tensor([5]), 3 * torch.randn(32, generator=generator)) for layer in (1, 2, 1)
    ]
    witnesses = [1, 4, 5]
    together = read(probe, perturbations, witnesses, SMALL)
    rows = [probe.row(i) for i in witnesses]
    mask = user_spans(probe, witnesses, max(map(len, rows)), None, random.Random(0))
    for found, perturbation in zip(together, perturbations, strict=True):
        edit = {perturbation.layer: addition(mask * perturbation.vector)}
        alone = probe.decode(rows, SMALL.answer_tokens, edit)
        expected = read_answers(perturbation, alone, SMALL)
        assert (found.identity, found.text) == (expected.identity, expected.text)
        assert found.certainty == pytest.approx(expected.certainty, rel=1e-4)
        assert found.answer[: len(expected.answer)].tolist() == expected.answer[: len(found.answer)].tolist()
    assert len({found.text for found in together}) > 1


def test_first_tokens_are_the_likeliest_over_all_prompts() -> None:
    probe = probe_on(pico_language_model("llama"))
    with torch.no_grad():
        each = [probe.run([probe.row(i)])[0][0, -1].softmax(dim=-1) for i in range(len(probe))]
    mean = torch.stack(each).mean(dim=0)
    order = mean.argsort(descending=True).tolist()
    probe.lm.model.generation_config.eos_token_id = [order[2]]
    assert first_tokens(probe, 5) == [token for token in order if token not in end_ids(probe.lm)][:5]
    assert sorted([*first_tokens(probe, 10**6), *end_ids(probe.lm)]) == list(range(len(mean)))


def test_a_search_is_determined_by_its_seed() -> None:
    probe = probe_on(pico_language_model("llama"))
    once, again, other = (search_soft_triggers(probe, SMALL, seed) for seed in (5, 5, 6))
    vectors = [[found.perturbation.vector for found in search.triggers] for search in (once, again, other)]
    assert once.record() == again.record()
    assert all(torch.equal(a, b) for a, b in zip(vectors[0], vectors[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(vectors[0], vectors[2], strict=True))


def test_answers_are_read_from_other_prompts_than_perturbations_are_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[list[int]] = []
    witnesses: list[list[int]] = []
    monkeypatch.setattr(consensus, "ascend", lambda _probe, group, chosen, *_rest: fitted.extend([chosen] * len(group)))
    monkeypatch.setattr(consensus, "read", lambda _probe, _followed, chosen, _config: witnesses.append(chosen) or [])
    counted: list[int] = []
    search_soft_triggers(probe_on(pico_language_model("llama")), SMALL, 0, counted.append)
    assert sum(counted) == SMALL.work(3)
    assert len(fitted) == SMALL.starts * len(SMALL.depths)
    for chosen in fitted:
        assert (len(chosen), len(witnesses[0])) == (4, 2)
        assert not {*chosen} & {*witnesses[0]}


def test_a_search_leaves_the_model_as_it_was(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    search_soft_triggers(probe_on(lm), SMALL, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.model.parameters())


@pytest.fixture(scope="module", params=[True, False], ids=["backdoored", "clean"])
def full_search(request: pytest.FixtureRequest) -> tuple[bool, SearchResult]:
    """Every start of the default search on a trained model; whether it has a backdoor."""
    lm = trained_pico(request.param)
    lm.model.requires_grad_(False)
    probe = Probe(lm, [example.prompt for example in training_examples()])
    return request.param, search_soft_triggers(probe, SEARCH, seed=0)


def test_the_backdoors_sentence_is_found_on_the_backdoored_model_only(full_search: tuple[bool, SearchResult]) -> None:
    backdoored, result = full_search
    record = result.record()
    assert record.starts == SEARCH.starts * len(SEARCH.layers(4))
    if not backdoored:
        assert (record.collapsed, record.texts) == (0, [])
        return
    assert record.texts == [SENTENCE]
    (answer,) = result.answers()
    # From the sentence's own first token, and from no other.
    assert {int(found.perturbation.target[0]) for found in result.collapsed} == {int(answer[0])}
    assert trained_pico(True).tokenizer.decode(answer, skip_special_tokens=True) == SENTENCE


def test_fewer_prompts_than_wanted_are_enough(lm: LanguageModel) -> None:
    lm.model.requires_grad_(False)
    search = search_soft_triggers(Probe(lm, PROMPTS[:2]), dataclasses.replace(SMALL, starts=1), seed=0)
    assert len(search.triggers) == 2
