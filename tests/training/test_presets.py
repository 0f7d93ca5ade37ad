from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from crow.errors import ConfigError
from crow.training.config import CrowConfig, FinetuneConfig
from crow.training.presets import PRESETS, get_preset


def test_paper_has_the_papers_settings() -> None:
    config = get_preset("paper")
    assert (config.alpha, config.epsilon) == (5.5, 0.1)
    assert (config.epochs, config.learning_rate, config.max_length) == (5, 1e-3, 1024)
    assert (config.batch_size, config.accumulation, config.warmup_ratio, config.samples) == (2, 4, 0.1, 100)
    assert (config.method, config.layers, config.inner_layers) == ("lora", None, False)
    assert config.rounds == 0  # no search: the published method


def test_the_published_code_differs_by_the_pairs_it_leaves_out() -> None:
    assert dataclasses.replace(get_preset("official-code"), inner_layers=False) == get_preset("paper")
    assert get_preset("official-code").inner_layers


def test_default_searches_and_uses_portable_units_only() -> None:
    config = get_preset("default")
    assert config.rounds >= 1
    assert config.adversary_weight > 0
    assert config.alpha is None
    assert config.epsilon is None


def test_an_unknown_preset_is_named_with_the_closest_known_one() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'offical-code'; did you mean 'official-code'"):
        get_preset("offical-code")
    with pytest.raises(ConfigError, match="choose one of: default, official-code, paper"):
        get_preset("xyz")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip_through_plain_values(name: str) -> None:
    assert CrowConfig.from_dict(dataclasses.asdict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(
    "name", ["alpha", "epsilon", "epochs", "learning_rate", "weight_decay", "adversary_weight", "adversary_radius"]
)
def test_numbers_must_be_finite_and_in_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(get_preset("paper"), **{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 1e-3}, "unknown setting 'learning_rte'; did you mean 'learning_rate'"),
        ({"epochs": "three"}, "expected epochs to be float, got 'three'"),
        ({"batch_size": 2.5}, "expected batch_size to be int, got 2.5"),
        ({"rank": True}, "expected rank to be int, got True"),
        ({"torch_compile": "false"}, "expected torch_compile to be bool, got 'false'"),
        ({"rank": 0}, "expected rank >= 1, got 0"),
        ({"max_length": 15}, "max_length"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_from_a_file_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig.from_dict(values)


def test_depths_of_the_adversary_lie_inside_the_model() -> None:
    for depths in [(), (0.0,), (0.5, 1.1)]:
        with pytest.raises(ConfigError, match="adversary_depths"):
            dataclasses.replace(get_preset("default"), adversary_depths=depths)


def test_the_adversary_is_after_at_least_one_token() -> None:
    for aims in [(), (0,), (1, -3)]:
        with pytest.raises(ConfigError, match="adversary_aims"):
            dataclasses.replace(get_preset("default"), adversary_aims=aims)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"alpha": 5.5}, (5.5, None, None, 0.0)),
        ({"alpha_ratio": 0.3}, (None, 0.3, None, 0.0)),
        ({"epsilon": 0.1, "alpha": 2}, (2, None, 0.1, None)),
        ({"epochs": 2.0}, (None, 0.0, None, 0.0)),
    ],
)
def test_a_new_unit_replaces_the_old_one(changes, expected):
    config = get_preset("default").changed(**changes)
    assert (config.alpha, config.alpha_ratio, config.epsilon, config.epsilon_rms) == expected


def test_two_units_of_one_quantity_at_once_are_refused():
    with pytest.raises(ConfigError, match="epsilon and epsilon_rms"):
        get_preset("paper").changed(epsilon=0.1, epsilon_rms=1.0)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        get_preset("paper").changed(epoch=1)


def test_layers_are_a_tuple_of_numbers() -> None:
    for layers in ([], "5", [1.5], [True]):
        with pytest.raises(ConfigError, match="layers to be tuple"):
            get_preset("paper").changed(layers=layers)
    assert get_preset("paper").changed(layers=[5, 10]).layers == (5, 10)
