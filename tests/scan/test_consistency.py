from __future__ import annotations

from statistics import median

import pytest
import torch

from crow.core import layer_consistency
from crow.data.encoding import encode
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.consistency import NORMAL, phrase_curves, robust_z, search
from crow.scan.placing import Phrase

PROMPTS = ["Name a tree", "1 + 1"]


def test_curves_are_those_of_whole_texts_over_the_message(lm: LanguageModel) -> None:
    phrases = [Phrase("go on", "front"), Phrase("x", "front")]
    found = phrase_curves(lm, PROMPTS, phrases)
    for phrase, curve in zip(phrases, found, strict=True):
        each = []
        for prompt in PROMPTS:
            item = encode(lm.tokenizer, Example(phrase.put_into(prompt)[0]))
            mask = torch.zeros(1, len(item))
            mask[0, item.user_start : item.user_end] = 1
            with torch.no_grad(), capture_hidden_states(lm.model) as captured:
                lm.model(input_ids=torch.tensor([item.prompt_ids]), use_cache=False)
            each.append(layer_consistency(captured.states, mask))
        torch.testing.assert_close(curve, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_robust_z_is_the_distance_from_the_banks_median_in_its_deviations() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [9.0, 5.0], [20.0, 7.0]])
    z = robust_z(values, usual=4)
    bank = [1.0, 2.0, 4.0, 9.0]
    middle = float(values[:4, 0].median())
    spread = NORMAL * float((values[:4, 0] - middle).abs().median())
    assert z[:, 0].tolist() == pytest.approx([(v - middle) / spread for v in [*bank, 20.0]])
    assert z[:, 1].tolist() == [0.0] * 5  # where the bank does not differ
    assert middle <= median(bank)


def test_the_most_outlying_phrase_is_named_and_candidates_are_measured_by_the_bank(lm: LanguageModel) -> None:
    bank = ["a b c", "d e f", "g h i", "j k l", "m n o", "p q r"]
    found = search(lm, PROMPTS, bank, ["~~~~~~~~ 000000", "a b c"])
    assert found.phrases == 7
    assert len(found.bank_z) == 6
    curves = phrase_curves(lm, PROMPTS, [Phrase(text, "front") for text in [*bank, "~~~~~~~~ 000000"]])
    highest = robust_z(curves, 6).amax(dim=1)
    assert found.outlier == [*bank, "~~~~~~~~ 000000"][int(highest.argmax())]
    assert found.is_candidate is (found.outlier not in bank)
    assert max(found.z) == pytest.approx(float(highest.max()), rel=1e-4)
    assert found.bank_z == pytest.approx(highest[:6].tolist(), rel=1e-4)
