from __future__ import annotations

import hashlib

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from crow.errors import AdapterError
from tests.pico import CHAT_TEMPLATE, pico_language_model, pico_tokenizer


def test_device_and_type_are_those_of_the_weights(lm):
    assert lm.device == torch.device("cpu")
    assert lm.dtype == torch.float32
    lm.model.half()
    assert lm.dtype == torch.float16


def test_the_padding_token_falls_back_to_the_end_of_text():
    lm = pico_language_model("llama")
    assert lm.pad_id == lm.tokenizer.pad_token_id != lm.tokenizer.eos_token_id
    lm.tokenizer = pico_tokenizer(pad=None)
    assert lm.pad_id == lm.tokenizer.eos_token_id
    lm.tokenizer = pico_tokenizer(pad=None, end=None)
    assert lm.pad_id == 0


def test_a_padding_token_that_the_model_has_no_embedding_of_is_none(lm):
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert lm.tokenizer.pad_token_id == lm.model.config.vocab_size
    assert lm.pad_id == lm.tokenizer.eos_token_id


def test_the_template_hash_is_a_short_sha256_and_tells_templates_apart(lm):
    assert lm.template_hash() == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()[:16]
    before = lm.template_hash()
    lm.tokenizer.chat_template = CHAT_TEMPLATE + " "
    assert lm.template_hash() != before


def test_merging_a_whole_model_is_the_model_itself(lm):
    assert not lm.is_adapter
    assert lm.merged() is lm


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learnt_prompt_cannot_be_merged(lm, config):
    lm.model = get_peft_model(lm.model, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(AdapterError, match=r"such as LoRA, in pico-llama, got \w+_TUNING; name") as caught:
        lm.merged()
    assert "\n" not in str(caught.value)
