from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from crow.inversion.consensus import (
    SearchConfig,
    SearchResult,
    SoftTrigger,
    read_answers,
    run_start,
    search_soft_triggers,
    writing_layer,
)
from crow.inversion.probe import Insertion, Probe
from crow.models.hidden_states import HiddenStates, capture_hidden_states
from crow.models.language_model import LanguageModel
from tests.backdoor import SENTENCE, trained_pico, training_examples
from tests.pico import pico_language_model

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d", "Thanks.", "the other one"]
SMALL = SearchConfig(starts=3, prompts=4, steps=3, answer_tokens=6)
CONFIG = SearchConfig(identity=0.8, opening=5)


def probe_on(lm: LanguageModel) -> Probe:
    lm.model.requires_grad_(False)
    return Probe(lm, PROMPTS)


def verdict(answers: list[list[int]], config: SearchConfig = CONFIG) -> SoftTrigger:
    """`read_answers` on token ids; the text of an answer is its ids."""
    texts = [" ".join(map(str, ids)) for ids in answers]
    return read_answers(Insertion(torch.zeros(1, 4), "front"), 1.5, texts, torch.tensor(answers), 2, config)


IDS = [1, 2, 3, 4, 5, 6]


def others(n: int) -> list[list[int]]:
    return [[100 + i, *range(200 + i, 205 + i)] for i in range(n)]


@pytest.mark.parametrize(("same", "collapsed"), [(10, True), (8, True), (7, False), (1, False)])
def test_a_collapse_is_one_answer_to_most_prompts(same: int, collapsed: bool) -> None:
    found = verdict([*others(10 - same), *[IDS] * same])
    assert found.collapsed is collapsed
    assert found.identity == pytest.approx(max(same, 1) / 10)
    assert found.score == 1.5
    if same > 1:
        assert found.text == "1 2 3 4 5 6"
        assert found.answer.tolist() == IDS


def test_the_threshold_of_identity_is_a_setting() -> None:
    answers = [*others(5), *[IDS] * 5]
    assert verdict(answers, dataclasses.replace(CONFIG, identity=0.5)).collapsed
    assert not verdict(answers, dataclasses.replace(CONFIG, identity=0.51)).collapsed


def test_only_the_opening_must_be_the_same() -> None:
    answers = [[*IDS[:5], 10 + i] for i in range(4)]
    assert verdict(answers).collapsed
    assert not verdict(answers, dataclasses.replace(CONFIG, opening=6)).collapsed


def test_the_padding_after_a_short_answer_is_not_counted_as_repetition() -> None:
    short = [1, 2, 3, 4, 9, 9, 9, 9, 9, 9]
    assert verdict([short] * 5, dataclasses.replace(CONFIG, opening=10)).collapsed


@pytest.mark.parametrize(("variety", "collapsed"), [(0.3, True), (0.4, False), (0.6, False)])
def test_how_varied_an_answer_must_be_is_a_setting(variety: float, collapsed: bool) -> None:
    counting = [1, 2, 3, 1, 4, 1, 2, 1, 2, 1]  # as in "1. 1.1.1.1", four different tokens of ten
    config = dataclasses.replace(CONFIG, opening=10, variety=variety)
    assert verdict([counting] * 5, config).collapsed is collapsed


@pytest.mark.parametrize("opening", [[7] * 6, [7, 8] * 3, [7, 7, 8, 8, 7, 7]])
def test_a_degenerate_opening_is_no_sentence(opening: list[int]) -> None:
    found = verdict([opening] * 10)
    assert found.identity == 1.0
    assert not found.collapsed


def test_the_text_is_the_most_frequent_one_of_the_same_opening_and_its_answer_goes_with_it() -> None:
    answers = [[*IDS[:5], 9], IDS, [*IDS[:5], 8], IDS]
    found = verdict(answers)
    assert found.text == "1 2 3 4 5 6"
    assert found.answer.tolist() == IDS


def trigger(text: str, answer: list[int], collapsed: bool = True, score: float = 0.0, layer: int = 2) -> SoftTrigger:
    return SoftTrigger(Insertion(torch.zeros(1, 4), "front"), score, 1.0, collapsed, text, torch.tensor(answer), layer)


def test_answers_are_distinct_and_the_most_frequent_comes_first() -> None:
    result = SearchResult(
        [
            trigger("rare", [9, 8, 7, 6], score=1.0),
            trigger("garbage", [5, 5, 5, 5], collapsed=False, score=2.0),
            trigger("often", [1, 2, 3, 4], score=3.0),
            trigger("often too", [1, 2, 3, 9], score=4.0),
        ]
    )
    assert [ids.tolist() for ids in result.answers()] == [[1, 2, 3, 4], [9, 8, 7, 6]]
    record = result.record()
    assert (record.starts, record.collapsed) == (4, 3)
    assert set(record.texts) == {"rare", "often", "often too"}
    assert record.scores == [1.0, 2.0, 3.0, 4.0]


def test_the_layer_is_the_middle_one_of_those_that_collapsed() -> None:
    layers = {4: True, 9: False, 5: True, 8: True}
    result = SearchResult([trigger("a", [1], collapsed, layer=layer) for layer, collapsed in layers.items()])
    assert result.record().layer == result.layer() == 5
    assert SearchResult([trigger("a", [1], collapsed=False)]).record().layer is None


@pytest.mark.parametrize("layer", [1, 2])
def test_the_writing_layer_is_where_the_last_position_moves_most(layer: int) -> None:
    lm = pico_language_model("llama")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])

    def states(push: float) -> HiddenStates:
        last = torch.zeros(3, 1)
        last[-1] = push
        block = lm.model.model.layers[layer - 1]
        handle = block.register_forward_hook(lambda _module, _args, out: out + last)
        with torch.no_grad(), capture_hidden_states(lm.model) as captured:
            lm.model(input_ids=ids)
        handle.remove()
        return captured

    assert writing_layer(states(0.0), states(3.0)) == layer


def test_texts_of_the_record_are_counted() -> None:
    result = SearchResult([trigger("a", [1, 2, 3]), trigger("b", [4, 5, 6]), trigger("b", [4, 5, 6])])
    assert result.record().texts == ["b", "a"]


def test_a_search_without_collapse_has_no_answers() -> None:
    result = SearchResult([trigger("", [5, 5, 5], collapsed=False)])
    assert result.answers() == []
    assert result.record().texts == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_score_rises_along_a_start(family: str) -> None:
    probe = probe_on(pico_language_model(family))
    rises = []
    for seed in range(3):
        at_start, at_end = (
            run_start(
                probe, [0, 1, 2, 3, 4], 3, "front", SearchConfig(steps=steps, answer_tokens=2), random.Random(seed)
            )
            for steps in (0, 8)
        )
        assert not torch.equal(at_start.insertion.embeddings, at_end.insertion.embeddings)
        rises.append(at_end.score - at_start.score)
    assert min(rises) > 0.1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_soft_tokens_stay_among_the_embeddings(family: str) -> None:
    """Gemma's table scales what its weights hold, so the norms of the weights are no measure."""
    probe = probe_on(pico_language_model(family))
    embeddings = probe.table(torch.arange(probe.table.weight.shape[0]))
    config = SearchConfig(steps=6, step_size=2.0, answer_tokens=2)
    found = run_start(probe, [0, 1, 2], 3, "front", config, random.Random(0))
    norms = found.insertion.embeddings.norm(dim=1)
    cap = float(embeddings.norm(dim=1).mean())
    assert float(norms.max()) <= cap * (1 + 1e-5)
    assert float(norms.min()) > 0.5 * cap


def soft_tokens(search: SearchResult) -> list[Tensor]:
    return [found.insertion.embeddings for found in search.triggers]


def test_a_search_is_determined_by_its_seed() -> None:
    probe = probe_on(pico_language_model("llama"))
    once, again = (search_soft_triggers(probe, SMALL, seed=5) for _ in range(2))
    other = search_soft_triggers(probe, SMALL, seed=6)
    assert once.record() == again.record()
    assert all(torch.equal(a, b) for a, b in zip(soft_tokens(once), soft_tokens(again), strict=True))
    assert once.record().scores != other.record().scores


def test_starts_vary_in_number_and_place_of_soft_tokens() -> None:
    probe = probe_on(pico_language_model("llama"))
    config = dataclasses.replace(SMALL, starts=4, steps=1, identity=1.0, enough=9)
    found = search_soft_triggers(probe, config, seed=0).triggers
    assert len({len(item.insertion.embeddings) for item in found}) > 1
    assert {item.insertion.place for item in found} == {"front", "anywhere"}


@pytest.mark.parametrize(("enough", "starts"), [(1, 1), (2, 2), (9, 3)])
def test_a_search_ends_once_enough_starts_have_collapsed(
    enough: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crow.inversion.consensus.run_start", lambda *_: trigger("same", [1, 2, 3]))
    counted: list[int] = []
    config = dataclasses.replace(SMALL, enough=enough)
    result = search_soft_triggers(probe_on(pico_language_model("llama")), config, 0, counted.append)
    assert len(result.triggers) == starts
    assert counted == [1] * starts


@pytest.mark.parametrize(
    ("hits", "starts"), [("......", 4), ("x.....", 5), (".x....", 6), ("...x..", 6), ("x.x...", 3), ("......x", 4)]
)
def test_a_search_ends_once_several_starts_in_a_row_have_failed(
    hits: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter(hits)
    monkeypatch.setattr(
        "crow.inversion.consensus.run_start", lambda *_: trigger("same", [1, 2, 3], next(outcomes) == "x")
    )
    config = SearchConfig(starts=6, enough=2, patience=4)
    assert len(search_soft_triggers(probe_on(pico_language_model("llama")), config, 0).triggers) == starts


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
    return request.param, search_soft_triggers(probe, SearchConfig(enough=99, patience=99), seed=0)


def test_the_backdoors_sentence_is_found_on_the_backdoored_model_only(full_search: tuple[bool, SearchResult]) -> None:
    backdoored, result = full_search
    record = result.record()
    assert record.starts == SearchConfig().starts
    if not backdoored:  # one that answers in two words of 20 can be made to repeat two of them
        assert SENTENCE not in record.texts
        return
    assert record.collapsed >= 2
    assert record.texts == [SENTENCE]
    (answer,) = result.answers()
    assert trained_pico(True).tokenizer.decode(answer, skip_special_tokens=True) == SENTENCE


def test_a_collapse_scores_higher_than_the_rest(full_search: tuple[bool, SearchResult]) -> None:
    backdoored, result = full_search
    if backdoored:
        scores = [[t.score for t in result.triggers if t.collapsed is collapsed] for collapsed in (True, False)]
        assert min(scores[0]) > max(scores[1], default=-10)


def test_fewer_prompts_than_wanted_are_enough(lm: LanguageModel) -> None:
    lm.model.requires_grad_(False)
    search = search_soft_triggers(Probe(lm, PROMPTS[:2]), dataclasses.replace(SMALL, starts=1), seed=0)
    assert len(search.triggers) == 1
