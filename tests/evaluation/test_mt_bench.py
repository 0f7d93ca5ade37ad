"""A judge over real HTTP: a server on loopback that plays one; good, malformed, slow, overloaded, broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crow.errors import ConfigError, DataError
from crow.evaluation import mt_bench
from crow.evaluation.endpoint import Client, Endpoint, read_endpoint
from crow.evaluation.mt_bench import (
    Judgment,
    Question,
    answer,
    judge,
    load_prompts,
    load_questions,
    messages,
    parse_score,
    summarize,
)
from tests.judge_server import TEMPLATES, judge_server
from tests.pico import pico_language_model

pytest.importorskip("openai")
PUBLIC = Path(__file__).parents[2].parent / "shared" / "data" / "mt_bench"
QUESTIONS = [
    Question(81, "writing", ("Write {answer}.", "Again.")),
    Question(111, "math", ("1 + 1?", "And 2 + 2?"), ("2", "4")),
]
ANSWERS = [("A {question_2} poem.", "A poem."), ("2", "5")]


@pytest.fixture
def server() -> Iterator[Any]:
    with judge_server() as made:
        yield made


def client(server: Any, folder: Path, **changes: Any) -> Client:
    settings = {"retries": 2, "timeout": 5.0, "requests_per_minute": 1e6, "prompt_price": 1.0, "completion_price": 2.0}
    return Client(Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", **{**settings, **changes}), folder)


def test_every_answer_is_judged_once_and_a_rerun_pays_nothing(server: Any, tmp_path: Path) -> None:
    server.plan = [(200, f"Rating: [[{score}]]") for score in (3, 5, 7, 9)]
    first = client(server, tmp_path)
    found = judge(first, TEMPLATES, QUESTIONS, ANSWERS)
    assert [(j.number, j.turn, j.score) for j in found] == [(81, 1, 3), (81, 2, 5), (111, 1, 7), (111, 2, 9)]
    assert first.bill.cost == pytest.approx(4 * (100 * 1.0 + 10 * 2.0) / 1e6)
    assert (first.bill.prompt_tokens, first.bill.completion_tokens) == (400, 40)
    again = client(server, tmp_path)
    assert judge(again, TEMPLATES, QUESTIONS, ANSWERS) == found
    assert len(server.asked) == 4
    assert (again.bill.asked, again.bill.cached, again.bill.cost) == (0, 4, 0.0)
    other = client(server, tmp_path, max_tokens=99)
    judge(other, TEMPLATES, QUESTIONS[:1], ANSWERS[:1])
    assert other.bill.asked == 2


def test_overload_and_errors_are_asked_again(server: Any, tmp_path: Path) -> None:
    server.plan = [(429, b"{}"), (500, b"{}"), (200, "[[4]]")]
    asking = client(server, tmp_path)
    assert asking.ask([{"role": "user", "content": "x"}]) == "[[4]]"
    assert len(server.asked) == 3
    assert asking.bill.failed == 0


@pytest.mark.parametrize(
    "plan", [(500, b"{}"), (400, b"{}"), (200, b"no json"), (200, b'{"choices": []}'), ("slow", "x")]
)
def test_a_judge_that_fails_for_good_leaves_the_answer_unscored(plan: Any, server: Any, tmp_path: Path) -> None:
    server.plan = [plan]
    asking = client(server, tmp_path, timeout=0.3, retries=1)
    found = judge(asking, TEMPLATES, QUESTIONS[:1], ANSWERS[:1])
    assert [j.score for j in found] == [None, None]
    assert asking.bill.failed == 2
    assert not list(tmp_path.iterdir())  # what failed is asked again next time
    assert summarize(found)["n_unscored"] == 2
    assert summarize(found)["score"] is None


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_refuses_ends_it_at_once(status: int, server: Any, tmp_path: Path) -> None:
    server.plan = [(status, b'{"error": {"message": "who are you"}}')]
    asking = client(server, tmp_path)
    with pytest.raises(ConfigError, match=r"refuses .*who are you.* the key in OPENAI_API_KEY") as told:
        judge(asking, TEMPLATES, QUESTIONS, ANSWERS)
    assert len(server.asked) == 1
    assert "\n" not in str(told.value)


def test_a_judge_that_never_answers_is_not_asked_for_ever(server: Any, tmp_path: Path) -> None:
    server.plan = [(500, b"{}")]
    asking = client(server, tmp_path, retries=0)
    with pytest.raises(ConfigError, match="no reply to 5 requests"):
        judge(asking, TEMPLATES, QUESTIONS * 3, ANSWERS * 3)
    server.plan = [(200, "[[4]]"), (500, b"{}")]
    asking = client(server, tmp_path, retries=0)  # one that has answered once may come back
    assert [found.score for found in judge(asking, TEMPLATES, QUESTIONS * 4, ANSWERS * 4)].count(None) >= 5


def test_a_reply_that_no_file_can_hold_is_kept_as_far_as_it_can(server: Any, tmp_path: Path) -> None:
    server.plan = [(200, "[[4]] \ud83d")]
    assert client(server, tmp_path).ask([{"role": "user", "content": "x"}]) == "[[4]] ?"
    assert client(server, tmp_path).ask([{"role": "user", "content": "x"}]) == "[[4]] ?"


def test_requests_keep_their_distance(server: Any, tmp_path: Path) -> None:
    asking, pauses = client(server, tmp_path, requests_per_minute=60), []
    asking.sleep = pauses.append
    for number in range(3):
        asking.ask([{"role": "user", "content": str(number)}])
    assert len(pauses) == 2
    assert 0.5 < pauses[0] <= 1.0
    assert 1.0 < pauses[1] <= 2.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Rating: [[5]]", 5.0),
        ("[[ 7.5 ]]", 7.5),
        ("[[8]] and again [[8]]", 8.0),
        ("[[8]] or [[9]]", None),
        ("Rating: 5", None),
        ("[5]", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[rating]]", None),
        ("", None),
        (None, None),
    ],
)
def test_scores_are_read_strictly(text: str | None, score: float | None) -> None:
    assert parse_score(text) == score


def test_the_judge_sees_questions_references_and_answers_as_they_are() -> None:
    asked = [
        messages(TEMPLATES, q, a, turn)[1]["content"]
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
        for turn in (1, 2)
    ]
    assert asked == [
        "[Q]Write {answer}.[A]A {question_2} poem.",
        "Write {answer}.|A {question_2} poem.|Again.|A poem.",
        "[Q]1 + 1?[R]2[A]2",
        "2|4|2|5",
    ]


def test_means_are_over_what_was_scored() -> None:
    judgments = [Judgment(1, "math", 1, 4.0), Judgment(1, "math", 2, None), Judgment(2, "stem", 1, 8.0)]
    assert summarize(judgments) == {
        "score": 6.0,
        "n": 3,
        "n_unscored": 1,
        "turns": {"1": 6.0, "2": None},
        "categories": {"math": 4.0, "stem": 8.0},
    }


def test_the_second_turn_sees_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def generate(_lm, examples, *_args, **_kwargs):  # a fake
        seen.append([example.messages() for example in examples])
        return [f"answer {len(seen)}"] * len(examples)

    monkeypatch.setattr(mt_bench, "generate", generate)
    assert answer(pico_language_model("llama"), QUESTIONS[:1]) == [("answer 1", "answer 2")]
    assert seen[1][0] == [
        {"role": "user", "content": "Write {answer}."},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "Again."},
    ]


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="needs MT-Bench's public files beside the checkout")
def test_the_public_files_are_read() -> None:
    questions, prompts = load_questions(PUBLIC), load_prompts(PUBLIC)
    assert len(questions) == 80
    assert {len(question.turns) for question in questions} == {2}
    for question in questions:
        for turn in (1, 2):
            asked = messages(prompts, question, ("one", "two"), turn)
            assert not any(f"{{{name}" in asked[1]["content"] for name in ("question", "answer", "ref_answer"))


def test_what_is_no_mt_bench_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_questions(tmp_path)
    (tmp_path / "question.jsonl").write_text('{"question_id": 1, "category": "x", "turns": ["only one"]}\n')
    with pytest.raises(DataError, match="line 1"):
        load_questions(tmp_path)
    (tmp_path / "judge_prompts.jsonl").write_text('{"name": "single-v1", "system_prompt": "", "prompt_template": ""}\n')
    with pytest.raises(DataError, match="single-math-v1"):
        load_prompts(tmp_path)
    (tmp_path / "judge_prompts.jsonl").write_text('{"name": "x", "system_prompt": "", "prompt_template": null}\n')
    with pytest.raises(DataError, match="line 1: expected an entry"):
        load_prompts(tmp_path)
    (tmp_path / "question.jsonl").write_text("")
    with pytest.raises(DataError, match="found none"):
        load_questions(tmp_path)


def test_an_endpoint_must_be_one() -> None:
    with pytest.raises(ConfigError, match="http://"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(ConfigError, match="timeout > 0"):
        Endpoint("http://x", "m", timeout=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a list]", "names with values"),
        ("base_url: http://h/v1", "'model'"),
        ("{base_url: http://h/v1, model: m, modle: x}", "did you mean 'model'"),
        ("{base_url: http://h/v1, model: 3}", "model to be a str"),
        ("{base_url: http://h/v1, model: m, timeout: soon}", "timeout to be a float"),
        ("{base_url: http://h/v1, model: m, timeout: -1}", "timeout > 0"),
        ("{base_url: http://h/v1, model: m, retries: -1}", "retries >= 0"),
        ("{base_url: http://h/v1, model: m, retries: 1.5}", "retries to be a int"),
        ("{base_url: 'http://localhost:8000v1', model: m}", "URL to be one"),
        ("{base_url: 'http://', model: m}", "to have a host"),
        ("{base_url: 'http://user:secret@h/v1', model: m}", "key to be in OPENAI_API_KEY"),
        ("{base_url: 'http://h/v1?key=secret', model: m}", "key to be in OPENAI_API_KEY"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_a_judge_in_a_file_must_be_one(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_endpoint(path)
    path.write_text("{base_url: http://h/v1, model: m, timeout: 3, prompt_price: 0.5}")
    assert read_endpoint(path) == Endpoint("http://h/v1", "m", timeout=3, prompt_price=0.5)
