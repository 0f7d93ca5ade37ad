from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from crow.inversion import consensus
from crow.inversion.consensus import (
    Opening,
    SearchConfig,
    SearchResult,
    SoftTrigger,
    directions,
    first_tokens,
    learnt_by_heart,
    read,
    read_answers,
    screen,
    search_soft_triggers,
)
from crow.inversion.perturbation import Perturbation, addition, log_likelihood, user_spans
from crow.inversion.probe import Answers, Probe
from crow.models.generation import end_ids
from crow.models.hidden_states import edit_hidden_states
from crow.models.language_model import LanguageModel
from tests.backdoor import SEARCH, SENTENCE, trained_pico, training_examples
from tests.pico import pico_language_model

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d", "Thanks.", "the other one"]
SMALL = SearchConfig(candidates=12, starts=3, depths=(0.3, 0.6), prompts=4, steps=1, answer_tokens=6)
NOWHERE = Perturbation(1, None, torch.zeros(0, dtype=torch.long), torch.zeros(4))
CONFIG = SearchConfig(identity=0.8, opening=5)


def probe_on(lm: LanguageModel) -> Probe:
    lm.model.requires_grad_(False)
    return Probe(lm, PROMPTS)


def verdict(answers: list[list[int]], config: SearchConfig = CONFIG) -> SoftTrigger:
    """`read_answers` on token ids; the text of an answer is its ids."""
    texts = [" ".join(map(str, ids)) for ids in answers]
    return read_answers(NOWHERE, said(texts, answers), config)


def said(texts: list[str], answers: list[list[int]], share: float = 1.0) -> Answers:
    ids = torch.tensor(answers)
    return Answers(texts, ids, torch.full(ids.shape, share))


IDS = [1, 2, 3, 4, 5, 6]


def others(n: int) -> list[list[int]]:
    return [[100 + i, *range(200 + i, 205 + i)] for i in range(n)]


@pytest.mark.parametrize(("same", "collapsed"), [(10, True), (8, True), (7, False), (1, False)])
def test_a_collapse_is_one_answer_to_most_prompts(same: int, collapsed: bool) -> None:
    found = verdict([*others(10 - same), *[IDS] * same])
    assert found.collapsed is collapsed
    assert found.identity == pytest.approx(max(same, 1) / 10)
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
    found = verdict([short] * 5, dataclasses.replace(CONFIG, opening=10))
    assert found.collapsed
    assert found.answer.tolist() == [1, 2, 3, 4, 9]


@pytest.mark.parametrize(("length", "collapsed"), [(1, False), (2, False), (3, True), (4, True)])
def test_an_answer_of_no_more_than_the_fitted_tokens_is_no_evidence(length: int, collapsed: bool) -> None:
    short = [*range(1, length + 1), *[9] * (8 - length)]  # 9 ends it
    assert verdict([short] * 5, dataclasses.replace(CONFIG, opening=8, agreed=2)).collapsed is collapsed


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


@pytest.mark.parametrize(("text", "collapsed"), [("Neutral.", False), ("Go away.", True), ("你很蠢", True)])
def test_one_word_is_no_sentence_where_words_have_spaces(text: str, collapsed: bool) -> None:
    assert read_answers(NOWHERE, said([text] * 5, [IDS] * 5), CONFIG).collapsed is collapsed


def test_the_text_is_the_most_frequent_one_of_the_same_opening_and_its_answer_goes_with_it() -> None:
    answers = [[*IDS[:5], 9], IDS, [*IDS[:5], 8], IDS]
    found = verdict(answers)
    assert found.text == "1 2 3 4 5 6"
    assert found.answer.tolist() == IDS


@pytest.mark.parametrize(("opening", "first"), [(5, 3), (8, 4)])
def test_certainty_is_that_of_the_later_half_of_the_common_opening(opening: int, first: int) -> None:
    ids = list(range(9))
    answers = said(["same"] * 3, [ids, [9] * 9, ids])
    answers.shares[:, :first] = 0.01  # what was fitted says nothing, and a sentence may begin as others do
    answers.shares[:, opening:] = 0.02
    answers.shares[1] = 0.03  # another answer
    answers.shares[[0, 2], first] = torch.tensor([0.9, 0.5])
    found = read_answers(NOWHERE, answers, SearchConfig(opening=opening))
    assert found.certainty == pytest.approx((0.9 * 0.5) ** (1 / (2 * (opening - first))))


def test_a_sentence_that_ends_is_as_certain_as_its_tokens_padding_aside() -> None:
    answers = said(["same"] * 2, [[1, 2, 3, 4, 4]] * 2, share=0.5)
    answers.shares[:, 4] = 1.0
    assert read_answers(NOWHERE, answers, CONFIG).certainty == pytest.approx(0.5)


def trigger(text: str, answer: list[int], collapsed: bool = True, identity: float = 1.0) -> SoftTrigger:
    return SoftTrigger(NOWHERE, identity, collapsed, text, torch.tensor(answer), 1.0)


def test_what_was_not_learnt_by_heart_is_a_stock_phrase_unless_it_is_known() -> None:
    starts = [(trigger("sure", [1, 2, 3, 4]), 0.9), (trigger("sure", [1, 2, 3, 4]), 0.97)]
    starts += [(trigger("known", [5, 6, 7, 8, 9, 10]), 0.5), (trigger("stock", [5, 6, 7, 8, 1, 10]), 0.969)]
    starts += [(trigger("no collapse", [2, 2], collapsed=False), 0.2)]
    result = SearchResult([dataclasses.replace(each, certainty=certainty) for each, certainty in starts])
    assert [each.text for each in result.by_heart(CONFIG)] == ["sure", "sure"]
    result.mark_stock(CONFIG, [torch.tensor([5, 6, 7, 8, 9, 11])])
    record = result.record()
    assert (record.collapsed, record.texts, record.stock) == (3, ["sure", "known"], ["stock"])
    assert record.certainties == [0.97, 0.5]
    assert learnt_by_heart(record, CONFIG)
    assert not learnt_by_heart(dataclasses.replace(record, certainties=[0.9]), CONFIG)


def test_answers_are_distinct_and_the_most_frequent_comes_first() -> None:
    result = SearchResult(
        [
            trigger("rare", [9, 8, 7, 6], identity=0.1),
            trigger("garbage", [5, 5, 5, 5], collapsed=False, identity=0.2),
            dataclasses.replace(trigger("often", [1, 2, 3, 4, 5, 6], identity=0.3), certainty=0.98),
            trigger("often too", [1, 2, 3, 4, 5, 9], identity=0.4),
        ]
    )
    assert [ids.tolist() for ids in result.answers()] == [[1, 2, 3, 4, 5, 9], [9, 8, 7, 6]]  # the surest of a kind
    record = result.record()
    assert (record.starts, record.collapsed) == (4, 3)
    assert set(record.texts) == {"rare", "often", "often too"}
    assert record.identities == [0.1, 0.2, 0.3, 0.4]


def test_texts_of_the_record_are_counted() -> None:
    result = SearchResult([trigger("a", [1, 2, 3]), trigger("b", [4, 5, 6]), trigger("b", [4, 5, 6])])
    assert result.record().texts == ["b", "a"]


def test_a_search_without_collapse_has_no_answers() -> None:
    result = SearchResult([trigger("", [5, 5, 5], collapsed=False)])
    assert result.answers() == []
    assert result.record().texts == []


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
