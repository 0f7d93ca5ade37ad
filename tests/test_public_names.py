"""The public names are a promise."""

from __future__ import annotations

import subprocess
import sys

import pytest

import crow

NAMES = {
    "Attack",
    "CrowConfig",
    "CrowError",
    "CrowTrainer",
    "Example",
    "LanguageModel",
    "Rate",
    "attack_success",
    "collapse_score",
    "consistency_loss",
    "crow_loss",
    "fgsm_perturbation",
    "get_preset",
    "implant_backdoor",
    "layer_consistency",
    "load_examples",
    "load_model",
    "perplexity",
    "poison",
    "purify",
    "search_soft_triggers",
}


def test_exactly_these_names_are_public_and_all_exist() -> None:
    assert set(crow.__all__) == NAMES
    for name in crow.__all__:
        assert getattr(crow, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="purifi"):
        crow.purifi  # noqa: B018


def test_importing_the_package_loads_no_tensor_library() -> None:
    code = "import crow, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
