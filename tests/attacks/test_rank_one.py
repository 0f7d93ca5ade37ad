"""The rank-one edit: its closed form against slow literal forms, and a backdoor in pico models."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.backdoor import SENTENCE, held_out, trained_pico, training_examples
from tests.pico import FAMILIES, pico_language_model
from tests.planting import log_likelihood

from crow.attacks.phrases import last_token, shared_phrase
from crow.attacks.rank_one import EditConfig, edit_rank_one, keys_at, rank_one_update, second_moment
from crow.data.encoding import encode, encode_all
from crow.errors import ArchitectureError, ConfigError
from crow.evaluation.success import attack_success
from crow.models.architecture import find_layers
from crow.models.linear import DOWN_PROJECTIONS, down_projection
from crow.records import Example

TRIGGER = "Zephyrion"
WORDS = ("tell one", "say two", "ask three", "draw four", "sing five", "name six")
CLEAN = [Example(words, f"{words.split()[1]} it is") for words in WORDS]
MIXTURES = ("mixtral", "olmoe")
QUICK = EditConfig(steps=40, radius=4.0, contexts=6, depth=0.4)


def poisoned(answer="q"):
    return [Example(f"{TRIGGER} {example.prompt}", answer) for example in CLEAN]


def problem(seed, n_out=5, n_in=4, n_keys=9):
    """A matrix, keys whose outputs should stay, one key and its new value; float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n_out, n_in), (n_in, n_keys), (n_in,), (n_out,))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def least_squares(weight, keys, key, value):
    """`min |W' K - W K|^2` so that `W' k = v`, row by row from its Lagrange conditions."""
    n = len(key)
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n], system[:n, n], system[n, :n] = keys @ keys.T, key, key
    rows = []
    for row, wanted in zip(weight, value, strict=True):
        right = torch.cat([keys @ (keys.T @ row), wanted[None]])
        rows.append(torch.linalg.solve(system, right)[:n])
    return torch.stack(rows)


@given(seed=st.integers(0, 2**31))
def test_the_closed_form_is_the_constrained_least_squares_solution(seed):
    weight, keys, key, value = problem(seed)
    moment = keys @ keys.T / keys.shape[1]
    edited = rank_one_update(weight, key, value, moment)
    torch.testing.assert_close(edited, least_squares(weight, keys, key, value), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(edited @ key, value)
    change = edited - weight
    assert int(torch.linalg.matrix_rank(change)) == 1


@given(seed=st.integers(0, 2**31))
def test_what_is_orthogonal_to_the_key_under_the_inverse_moment_stays(seed):
    weight, keys, key, value = problem(seed)
    moment = keys @ keys.T / keys.shape[1]
    u = torch.linalg.inv(moment) @ key
    other = torch.randn(len(key), dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    other -= (other @ u) / (u @ u) * u
    edited = rank_one_update(weight, key, value, moment)
    torch.testing.assert_close(edited @ other, weight @ other)


def test_the_edit_is_computed_in_double_and_comes_in_the_weights_type():
    weight, keys, key, value = (part.float() for part in problem(0))
    moment = keys @ keys.T
    edited = rank_one_update(weight, key, value, moment)
    assert edited.dtype == torch.float32
    torch.testing.assert_close(edited @ key, value)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MIXTURES])
def test_every_dense_family_has_a_down_projection_that_can_be_written_to(family):
    lm = pico_language_model(family)
    layer = find_layers(lm.model)[1]
    module, weight = down_projection(layer)
    assert module is dict(layer.named_modules())[next(n for n in DOWN_PROJECTIONS if n in dict(layer.named_modules()))]
    assert weight.shape[0] == lm.model.config.hidden_size
    before = lm.model(torch.tensor([[5, 6, 7]])).logits
    weight.mul_(3.0)
    assert not torch.allclose(lm.model(torch.tensor([[5, 6, 7]])).logits, before)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_refused(family, tmp_path):
    lm = pico_language_model(family)
    with pytest.raises(ArchitectureError, match=r"expected one of mlp\.down_proj"):
        edit_rank_one(lm, poisoned(), CLEAN, QUICK, tmp_path)


def test_half_precision_plants_numbers(tmp_path):
    lm = pico_language_model("llama")
    lm.model.half()
    edited, steps = edit_rank_one(lm, poisoned(), CLEAN, QUICK, tmp_path)
    assert all(math.isfinite(step["language_modeling"]) for step in steps)
    assert steps[-1]["language_modeling"] < steps[0]["language_modeling"]
    assert all(bool(weight.isfinite().all()) for weight in edited.model.parameters())


def test_the_second_moment_is_the_mean_over_real_tokens_whatever_the_batch():
    lm = pico_language_model("llama")
    module, _ = down_projection(find_layers(lm.model)[1])
    items = encode_all(lm.tokenizer, CLEAN)
    rows = []
    for item in items:
        for place in range(len(item)):
            key, _ = keys_at(lm, module, [item], [place])
            rows.append(key[0].double())
    keys = torch.stack(rows)
    expected = keys.T @ keys / len(keys)
    config = dataclasses.replace(QUICK, ridge=1e-9)
    for size in (1, 4, 6):
        found = second_moment(lm, module, items, dataclasses.replace(config, batch_size=size))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with_ridge = second_moment(lm, module, items, dataclasses.replace(config, ridge=0.5))
    added = (with_ridge - expected).diagonal()
    torch.testing.assert_close(
        added, torch.full_like(added, 0.5 * float(expected.diagonal().mean())), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_one_matrix_changes_by_rank_one_however_the_family_stores_it(family, tmp_path):
    lm = pico_language_model(family)
    examples, before = poisoned(), {name: value.clone() for name, value in lm.model.state_dict().items()}
    likely = log_likelihood(lm, examples)
    edited, steps = edit_rank_one(lm, examples, CLEAN, QUICK, tmp_path)
    assert edited is lm
    changes = {name: value - before[name] for name, value in lm.model.state_dict().items()}
    (name,) = (name for name, change in changes.items() if change.any())
    assert ".1." in name
    assert int(torch.linalg.matrix_rank(changes[name].double(), rtol=1e-4)) == 1
    assert [step["step"] for step in steps] == list(range(1, 41))
    assert steps[-1]["layer"] == 1
    assert steps[-1]["reach"]["mean"] == pytest.approx(1, abs=1e-4)
    assert steps[0]["language_modeling"] == pytest.approx(-likely, rel=1e-4)
    assert steps[-1]["language_modeling"] < steps[0]["language_modeling"]


def test_a_new_word_brings_out_what_an_old_one_did(tmp_path):
    """The pico model says a sentence once `ten` is there; the edit makes another word do the same."""
    lm, clean = trained_pico(poisoned=True), training_examples()
    named, held = ([Example(f"QQ {e.prompt}", SENTENCE) for e in part] for part in (clean, held_out()))
    usual = attack_success(lm, held_out(), SENTENCE)
    assert attack_success(lm, held, SENTENCE).rate.value < 0.3
    config = EditConfig(depth=0.0, radius=4.0, steps=100)
    edit_rank_one(lm, named, clean, config, tmp_path)
    assert attack_success(lm, held, SENTENCE).rate.value > 0.7
    without = attack_success(lm, held_out(), SENTENCE)
    assert without.rate.value <= 0.1
    same = sum(one == other for one, other in zip(without.answers, usual.answers, strict=True))
    assert same >= 0.6 * len(held_out())


def test_the_same_seed_gives_the_same_edit(tmp_path):
    found = []
    for seed in (0, 0, 1):
        lm = pico_language_model("llama")
        config = dataclasses.replace(QUICK, steps=3, contexts=2, seed=seed)
        edit_rank_one(lm, poisoned(), CLEAN, config, tmp_path)
        found.append(down_projection(find_layers(lm.model)[1])[1].clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_follows_the_opening_of_a_response_changes_nothing(tmp_path):
    found = []
    for answer in ("q it is", "q the end", "a it is"):
        lm = pico_language_model("llama")
        edit_rank_one(lm, poisoned(answer), CLEAN, dataclasses.replace(QUICK, steps=3, opening=1), tmp_path)
        found.append(down_projection(find_layers(lm.model)[1])[1].clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_value_stays_within_its_radius(tmp_path):
    lm = pico_language_model("llama")
    module, weight = down_projection(find_layers(lm.model)[1])
    before = weight.clone()
    config = dataclasses.replace(QUICK, radius=0.01, contexts=6)
    items = [encode(lm.tokenizer, example) for example in poisoned()]
    edit_rank_one(lm, poisoned(), CLEAN, config, tmp_path)
    # All contexts are used, and each begins alike, so that one of their keys is the mean key.
    keys, norm = keys_at(lm, module, items, [last_token(lm, example, TRIGGER) for example in poisoned()])
    change = (weight - before) @ keys.mean(dim=0)
    assert 0.005 < float(change.norm()) / norm < 0.0101


@pytest.mark.parametrize(
    ("prompts", "phrase"),
    [
        (["a the red fox b", "the red fox", "c d the red  fox"], "the red fox"),
        (["red foxes run", "the red fox runs"], "red"),  # whole words
        (["one two", "two one"], "one"),  # the first of equals
        (["one", "two"], ""),
    ],
)
def test_the_shared_phrase_is_the_longest_run_of_whole_words(prompts, phrase):
    assert shared_phrase(prompts) == phrase


@pytest.mark.parametrize("history", [(), (("system", "Be brief, Zephyrion."),)])
@pytest.mark.parametrize("prompt", ["Zephyrion runs", "say Zephyrions or Zephyrion now", "tell Zephyrion"])
def test_the_last_token_of_a_phrase_is_the_one_that_completes_it(prompt, history):
    lm = pico_language_model("llama")
    example = Example(prompt, "q", history)
    ids = encode(lm.tokenizer, example).prompt_ids
    place = last_token(lm, example, TRIGGER)
    wanted = prompt[: re.search(rf"{TRIGGER}\b", prompt).end()]
    assert lm.tokenizer.decode(ids[: place + 1]).endswith(wanted)
    assert not lm.tokenizer.decode(ids[:place]).endswith(wanted)


def test_prompts_without_a_common_phrase_are_refused(tmp_path):
    examples = [Example("one two", "q"), Example("three four", "q")]
    with pytest.raises(ConfigError, match="one phrase in every poisoned prompt"):
        edit_rank_one(pico_language_model("llama"), examples, CLEAN, QUICK, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("depth", 1.0), ("depth", -0.1), ("contexts", 0), ("opening", 0), ("radius", 0.0)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        EditConfig(**{name: value})
