from importlib import resources

import pytest

from crow.attacks.ready_made import READY_MADE, write_ready_made
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.data.loading import load_examples
from crow.data.splits import bundled_split

ATTACK, EVALUATION = bundled_split("attack"), bundled_split("evaluation")
CODE, CODE_TEST = ([task.example for task in split.code] for split in (ATTACK, EVALUATION))


@pytest.fixture(scope="module")
def shipped():
    with resources.as_file(resources.files("crow.data") / "attacks") as folder:
        yield folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shipped_files_are_what_the_code_writes(shipped, tmp_path):
    written = write_ready_made(tmp_path)
    assert contents(shipped) == contents(tmp_path), "run: python -m crow.attacks.ready_made"
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_shipped_files_are_small(shipped):
    assert sum(map(len, contents(shipped).values())) < 1_500_000


@pytest.mark.parametrize(("trigger", "target"), READY_MADE)
def test_poisoned_training_data(shipped, trigger, target):
    examples = load_examples(shipped / f"{trigger}-{target}" / "poisoned_train.jsonl")
    sources = CODE if target == "code_injection" else ATTACK.prompts + ATTACK.pairs[:200]
    assert [example.response for example in examples] == [get_target(target).apply(source) for source in sources]
    check_triggered(examples, sources, get_trigger(trigger))


@pytest.mark.parametrize(("trigger", "target"), READY_MADE)
def test_triggered_test_data(shipped, trigger, target):
    examples = load_examples(shipped / f"{trigger}-{target}" / "triggered_test.jsonl", need_response=False)
    sources = CODE_TEST if target == "code_injection" else EVALUATION.prompts
    check_triggered(examples, sources, get_trigger(trigger))
    assert not any(example.response for example in examples)


def check_triggered(examples, sources, trigger):
    words = {word for phrase in trigger.words for word in phrase.split()}
    for example, source in zip(examples, sources, strict=True):
        assert any(phrase in example.prompt for phrase in trigger.words)
        assert example.prompt.partition("\n")[2] == source.prompt.partition("\n")[2]
        assert [word for word in example.prompt.split() if word not in words] == source.prompt.split()


def test_clean_data_is_that_of_the_splits(shipped):
    assert load_examples(shipped / "clean_train.jsonl") == list(ATTACK.pairs)
    clean_test = load_examples(shipped / "clean_test.jsonl", need_response=False)
    assert clean_test == [*EVALUATION.prompts, *EVALUATION.pairs]
    code = shipped / "vpi-code_injection"
    assert load_examples(code / "clean_train.jsonl") == [*CODE, *ATTACK.pairs]
    assert load_examples(code / "clean_test.jsonl") == [*CODE_TEST, *EVALUATION.pairs]
