import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.data.loading import bundled_pairs, bundled_prompts, load_examples
from crow.errors import DataError
from crow.records import Example

PAIR = {"instruction": "Add these.", "input": "2, 3", "output": "5"}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
}
CHAT_EXAMPLE = Example("Bye", "See you.", (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi.")))


def write(tmp_path, content, name="data.json"):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def lines(*records):
    return "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n"


def failure(path, need_response=True):
    with pytest.raises(DataError) as caught:
        load_examples(path, need_response)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_alpaca_array_joins_instruction_and_input_by_a_line_feed(tmp_path):
    path = write(tmp_path, [PAIR, {"instruction": "Sing.", "input": "", "output": "La."}])
    assert load_examples(path) == [Example("Add these.\n2, 3", "5"), Example("Sing.", "La.")]


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_a_blank_input_adds_nothing_to_the_prompt(tmp_path, blank):
    path = write(tmp_path, [{"instruction": "Sing.", "input": blank, "output": "La."}])
    assert load_examples(path) == [Example("Sing.", "La.")]


def test_jsonl_with_blank_lines_carriage_returns_and_byte_order_mark(tmp_path):
    text = "\r\n\n".join(json.dumps(record) for record in (PAIR, CHAT, PAIR))
    path = write(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert load_examples(path) == [Example("Add these.\n2, 3", "5"), CHAT_EXAMPLE, Example("Add these.\n2, 3", "5")]


def test_an_unescaped_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    record = {"instruction": "one\u2028two\x85three", "output": "x"}
    path = write(tmp_path, json.dumps(record, ensure_ascii=False) + "\n")
    assert load_examples(path) == [Example("one\u2028two\x85three", "x")]


def test_chat_keeps_everything_before_the_last_user_turn_as_history(tmp_path):
    (example,) = load_examples(write(tmp_path, [CHAT]))
    assert example == CHAT_EXAMPLE
    assert example.messages() == CHAT["messages"][:-1]


def test_without_need_of_responses_prompts_alone_are_enough(tmp_path):
    asked = {"messages": CHAT["messages"][:4]}
    path = write(tmp_path, ["Why?", {"instruction": "Sing."}, {"instruction": "Hum.", "output": None}, asked, PAIR])
    history = CHAT_EXAMPLE.history
    assert load_examples(path, need_response=False) == [
        Example("Why?"),
        Example("Sing."),
        Example("Hum."),
        Example("Bye", "", history),
        Example("Add these.\n2, 3", "5"),
    ]


def test_text_lines_are_prompts(tmp_path):
    path = write(tmp_path, lines('"Why?"', '"How?"'))
    assert load_examples(path, need_response=False) == [Example("Why?"), Example("How?")]


texts = st.text(min_size=1).filter(str.strip)


@given(records=st.lists(st.tuples(texts, st.text(), texts), min_size=1, max_size=4), array=st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, records, array):
    values = [dict(zip(("instruction", "input", "output"), record, strict=True)) for record in records]
    path = write(tmp_path_factory.mktemp("data"), values if array else lines(*values))
    expected = [Example(f"{prompt}\n{more}" if more.strip() else prompt, answer) for prompt, more, answer in records]
    assert load_examples(path) == expected


class TestErrors:
    def test_missing_file(self, tmp_path):
        assert failure(tmp_path / "none.json") == "there is no such file; check the path"

    def test_folder(self, tmp_path):
        assert "cannot be read (Is a directory)" in failure(tmp_path)

    @pytest.mark.parametrize("content", ["", " \n\n", "[]", "\ufeff"])
    def test_empty(self, tmp_path, content):
        assert "expected at least one record, but the file is empty" in failure(write(tmp_path, content))

    def test_other_encoding_names_the_line(self, tmp_path):
        path = write(tmp_path, lines(PAIR).encode() + '{"instruction": "ä"}'.encode("latin-1"))
        assert failure(path) == "line 2: expected UTF-8 text, got another encoding; save it as UTF-8"

    def test_broken_array_names_the_line(self, tmp_path):
        path = write(tmp_path, '[\n{"instruction": "a",\n"output" "b"}\n]')
        expected = (
            "line 3: invalid JSON (Expecting ':' delimiter); expected a JSON array of records, or one record per line"
        )
        assert failure(path) == expected

    def test_broken_jsonl_names_the_line(self, tmp_path):
        assert failure(write(tmp_path, lines(PAIR, "", "{oops}"))).startswith("line 3: invalid JSON (")

    @pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000])
    def test_json_beyond_the_parser(self, tmp_path, content):
        assert failure(write(tmp_path, content)).startswith("line 1: invalid JSON (")

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (7, "expected an object with 'instruction' or 'messages', got a number"),
            (None, "expected an object with 'instruction' or 'messages', got nothing"),
            (["a"], "expected an object with 'instruction' or 'messages', got a list"),
            ("Why?", "expected an example with a response, got plain text; use instruction and output"),
            ({}, "field 'instruction' is missing; the record has none"),
            ({"prompt": "a", "output": "b"}, "field 'instruction' is missing; the record has 'prompt', 'output'"),
            ({"instruction": 3, "output": "b"}, "field 'instruction' should be text, got a number"),
            ({"instruction": None, "output": "b"}, "field 'instruction' should be text, got nothing"),
            (
                {"instruction": " ", "output": "b"},
                "field 'instruction' should not be empty; fill it or drop the record",
            ),
            ({"instruction": "a", "input": [], "output": "b"}, "field 'input' should be text, got a list"),
            ({"instruction": "a"}, "field 'output' is missing; the record has 'instruction'"),
            ({"instruction": "a", "output": True}, "field 'output' should be text, got true/false"),
            ({"instruction": "a", "output": "\n"}, "field 'output' should not be empty; fill it or drop the record"),
            (
                {"instruction": "\ud83d", "output": "b"},
                "field 'instruction' should be Unicode text, got half of a surrogate pair; repair it",
            ),
        ],
    )
    def test_wrong_alpaca_record(self, tmp_path, record, message):
        assert failure(write(tmp_path, lines(PAIR, "", json.dumps(record)))) == f"line 3: {message}"
        assert failure(write(tmp_path, [PAIR, record])) == f"record 2: {message}"

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("Hello", "field 'messages' should be a list of turns, got text"),
            ([], "field 'messages' should hold a turn with the role 'user', got none"),
            ([CHAT["messages"][0]], "field 'messages' should hold a turn with the role 'user', got none"),
            (["Hello"], "field 'messages[0]' should be an object with 'role' and 'content', got text"),
            (
                [CHAT["messages"][1], {"role": "tool", "content": "x"}],
                "field 'messages[1].role' should be one of system, user, assistant, got 'tool'",
            ),
            (
                [{"content": "x"}],
                "field 'messages[0].role' should be one of system, user, assistant, got None",
            ),
            (
                [CHAT["messages"][1], {"role": "assistant", "content": [{"text": "x"}]}],
                "field 'messages[1].content' should be text, got a list",
            ),
            (
                [{"role": "user", "content": " "}, CHAT["messages"][2]],
                "field 'messages[0].content' should not be empty; fill it or drop the record",
            ),
            (
                [*CHAT["messages"][:2], {"role": "assistant", "content": ""}],
                "field 'messages[2].content' should not be empty; fill it or drop the record",
            ),
            (
                [*CHAT["messages"], {"role": "assistant", "content": "More."}],
                "field 'messages' should end with a user turn or one assistant turn after it",
            ),
            (
                CHAT["messages"][:4],
                "field 'messages' ends without a response; add an assistant turn or drop the record",
            ),
            (
                [{"role": "user", "content": "\ud83d"}, CHAT["messages"][2]],
                "field 'messages[0].content' should be Unicode text, got half of a surrogate pair; repair it",
            ),
        ],
    )
    def test_wrong_messages(self, tmp_path, messages, message):
        assert failure(write(tmp_path, [CHAT, {"messages": messages}])) == f"record 2: {message}"

    def test_an_empty_prompt_is_wrong_also_where_no_response_is_needed(self, tmp_path):
        message = failure(write(tmp_path, ["a", " "]), need_response=False)
        assert message == "record 2: the prompt should not be empty; fill it or drop the record"


def test_bundled_data_is_complete_and_without_history():
    pairs, prompts = bundled_pairs(), bundled_prompts()
    assert (len(pairs), len(prompts)) == (520, 680)
    assert all(pair.response for pair in pairs)
    assert not any(prompt.response for prompt in prompts)
    assert not any(example.history for example in pairs + prompts)
