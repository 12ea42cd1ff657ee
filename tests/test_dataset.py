import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spice_rs.data.dataset import dataset_fingerprint, load_records, tokenise, tokenizer_fingerprint
from spice_rs.data.left_out import reasons, write_left_out
from spice_rs.errors import InvalidInputError

GOOD = {"instruction": "add one and two", "response": "three"}
WORDS = (
    "add one and two three four five ### Instruction : Response System Result user assistant system".split()
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}"
)
# Earlier assistant turns lose their words, as reasoning models' templates drop earlier thoughts.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}five{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A system turn of the template's own, as some have, before whatever comes first.
HEADED = "{% if messages[0]['role'] != 'system' %}System five\n{% endif %}" + CHATML
TOOLS = (
    "{% for t in tools or [] %}System {{ t['name'] }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% for c in m.tool_calls or [] %} "
    "{{ c['function']['name'] }}{% endfor %}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template=None, pad="<|im_end|>", eos="<|im_end|>"):
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(":", "isolated"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=chat_template,
    )


def learned_words(example, tokenizer):
    return tokenizer.convert_ids_to_tokens(example.input_ids[example.labels != -100].tolist())


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "q", "response": "r"},
        {"instruction": "q", "input": "", "output": "r"},
        {"prompt": "q", "completion": "r"},
        {"question": "q", "answer": "r"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "r"},
            ]
        },
    ],
)
def test_all_layouts_mean_the_same_conversation(fields):
    record = load_records([fields])[0]
    assert [(m.role, m.content) for m in record.messages] == [("user", "q"), ("assistant", "r")]


def test_columns_name_the_fields_of_other_data():
    item = {"frage": "q", "antwort": "r", "prompt": "other", "messages": 7}
    record = load_records([item], columns={"prompt": "frage", "response": "antwort"})[0]
    assert [(m.role, m.content) for m in record.messages] == [("user", "q"), ("assistant", "r")]
    alpaca = {"instruction": "i", "input": "x", "output": "o"}  # where a row has no x, the input is absent
    items = [{"i": "q", "x": "more", "o": "r"}, {"i": "q", "o": "r"}]
    first, second = load_records(items, columns=alpaca)
    assert (first.messages[0].content, second.messages[0].content) == ("q\n\nmore", "q")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    assert load_records([{"dialog": turns}], columns={"messages": "dialog"})[0].messages == record.messages
    with pytest.raises(InvalidInputError, match="expected 'antwort' as the response"):
        load_records([{"frage": "q"}], columns={"prompt": "frage", "response": "antwort"})
    with pytest.raises(InvalidInputError, match=r"columns: found 'reply'.*response"):
        load_records([item], columns={"reply": "antwort"})


def test_text_is_learned_as_a_whole_with_an_end_token():
    tokenizer = make_tokenizer(CHATML)  # a chat template has nothing to say about plain text
    examples = tokenise(load_records([{"text": "add one"}, {"text": "two", "label": 1}]), tokenizer)
    assert learned_words(examples[0], tokenizer) == ["add", "one", "<|im_end|>"]
    assert [example.num_tokens for example in examples] == [2, 1]  # nothing predicts the first
    assert examples.template == "text"
    mixed = tokenise(load_records([{"text": "add one"}, GOOD]), tokenizer)
    assert mixed.template == "chat+text"
    with pytest.raises(InvalidInputError, match="'text': found empty"):
        load_records([{"text": " "}])
    assert dataset_fingerprint(load_records([{"text": "a"}])) != dataset_fingerprint(
        load_records([{"text": "b"}])
    )


def test_what_is_left_out_has_a_row_and_a_reason_and_is_listed(tmp_path):
    items = [GOOD, {"prompt": "a"}, {"prompt": "a", "response": ""}, {"prompt": "a", "response": " "}, [1]]
    records = load_records(items, skip_bad=True)
    assert [(item.row, item.reason) for item in records.bad] == [
        (1, "missing field"),
        (2, "empty response"),
        (3, "empty response"),
        (4, "no object"),
    ]
    assert reasons(records.bad) == {"empty response": 2, "missing field": 1, "no object": 1}
    cut = tokenise(records, make_tokenizer(CHATML), max_length=4, skip_bad=True).skipped
    assert [(item.row, item.reason) for item in cut] == [(0, "cut before the response")]
    path = write_left_out([*records.bad, *cut], tmp_path / "store")
    assert path == tmp_path / "store.left-out.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["reason"] and line["place"] and line["detail"] for line in lines)
    assert write_left_out([], tmp_path / "store") is None
    assert not path.exists()  # no list of an earlier run stays beside a store that it does not describe


def test_alpaca_input_follows_the_instruction():
    record = load_records([{"instruction": "a", "input": "b", "output": "c"}])[0]
    assert record.messages[0].content == "a\n\nb"


def test_every_file_kind_gives_the_same_records(tmp_path):
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    items = [{"instruction": f"q{i}", "response": f"r{i}"} for i in range(3)]
    lines = "".join(json.dumps(item) + "\n" for item in items)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / "a.parquet")
    Dataset.from_list(items).save_to_disk(str(tmp_path / "folder"))
    sources = [
        items,
        write(tmp_path / "a.jsonl", lines + "\n\n"),
        write(tmp_path / "b.json", json.dumps(items)),
        write(tmp_path / "c.json", lines),
        write(tmp_path / "d.json", "\ufeff" + json.dumps(items, indent=1)),
        str(tmp_path / "a.jsonl.gz"),
        tmp_path / "a.parquet",
        Dataset.from_list(items),
        tmp_path / "folder",
    ]
    prints = {dataset_fingerprint(load_records(source)) for source in sources}
    assert len(prints) == 1
    assert [record.index for record in load_records(sources[1])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"instruction": "a", ', ["line 3", "not JSON", "column"]),
        ('{"instruction": "a"}', ["line 3", "'instruction'", "expected the response", "'output'"]),
        ('{"response": "a"}', ["line 3", "the prompt"]),
        ('{"instruction": "a", "response": "  "}', ["line 3", "'response'", "empty"]),
        ('{"instruction": "a", "response": 7}', ["line 3", "'response'", "int 7", "string"]),
        ('{"instruction": null, "response": "a"}', ["line 3", "'instruction'", "null"]),
        ("[1, 2]", ["line 3", "list", "object"]),
        ('{"messages": []}', ["line 3", "'messages'", "turns"]),
        ('{"messages": [{"role": "user", "content": "a"}]}', ["line 3", "no assistant turn"]),
        ('{"messages": [{"role": "user"}]}', ["line 3", "messages[0]", "'content'"]),
        ('{"conversations": [{"from": "alien", "value": "a"}]}', ["line 3", "alien", "human"]),
        ('{"input_ids": [1, 2]}', ["line 3", "'labels'", "missing"]),
        ('{"input_ids": [1, 2], "labels": [1]}', ["line 3", "2 input_ids and 1 label"]),
        ('{"input_ids": [1, 0.5], "labels": [1, 2]}', ["line 3", "'input_ids'", "integers"]),
        ('{"input_ids": [1, -5], "labels": [1, 2]}', ["line 3", "-5"]),
        ('{"input_ids": [1, 5], "labels": [1, -2]}', ["line 3", "'labels'", "-100"]),
    ],
)
def test_a_bad_line_is_named_with_file_line_field_and_remedy(tmp_path, line, words):
    good = json.dumps(GOOD)
    path = write(tmp_path / "pool.jsonl", f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(InvalidInputError) as caught:
        load_records(path)
    for word in ["pool.jsonl", "skip_bad=True", *words]:
        assert word in str(caught.value)
    records = load_records(path, skip_bad=True)
    assert [record.index for record in records] == [0, 2]  # the bad line keeps its number
    assert (records.rows, len(records.bad)) == (3, 1)


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"instruction": "\xff", "response": "a"}\n')
    with pytest.raises(InvalidInputError, match=r"line 1: not UTF-8: byte 17 is 0xff"):
        load_records(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("missing.jsonl", None, "no such file"),
        ("a.xlsx", b"a,b", "suffix"),
        ("a.jsonl", b"", "no records"),
        ("a.json", b"[{", "not a JSON list"),
        (
            "a.json",
            json.dumps({"data": [GOOD]}, indent=1).encode(),
            "one object with 'data', expected a list",
        ),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.jsonl.gz", b"text", "cannot be read"),
        ("b.jsonl.gz", gzip.compress(b"{}\n" * 5000)[:-9], "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_typed_errors(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=word):
        load_records(tmp_path / name, skip_bad=name == "b.jsonl.gz")


@pytest.mark.parametrize("data", [7, None, {"a": 1}, []])
def test_other_types_are_refused(data):
    with pytest.raises(InvalidInputError):
        load_records(data)


def test_a_broken_file_in_a_folder_is_a_typed_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{bad', encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"neither a file nor a data set .*JSON"):
        load_records(tmp_path)


def test_fingerprint_follows_content_and_ignores_other_fields():
    base = dataset_fingerprint(load_records([GOOD]))
    assert dataset_fingerprint(load_records([{**GOOD, "source": "x"}])) == base
    assert dataset_fingerprint(load_records([{**GOOD, "response": "four"}])) != base
    assert dataset_fingerprint(load_records([GOOD, GOOD])) != base


def test_reading_and_tokenising_need_no_torch():
    code = (
        "import sys, spice_rs.data.dataset; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_all_assistant_turns_are_learned_with_their_end_tokens(template):
    tokenizer = make_tokenizer(template)
    turns = [
        ("system", "four"),
        ("user", "add"),
        ("assistant", "one two"),
        ("user", "add three"),
        ("assistant", "three"),
    ]
    records = load_records([{"messages": [{"role": role, "content": text} for role, text in turns]}])
    example = tokenise(records, tokenizer)[0]
    assert learned_words(example, tokenizer) == ["one", "two", "<|im_end|>", "three", "<|im_end|>"]
    assert example.num_tokens == 5
    assert "".join(tokenizer.convert_ids_to_tokens(example.input_ids.tolist())).startswith(
        "<|im_start|>system\nfour"
    )


def test_the_end_token_is_learned_where_it_is_the_pad_token():
    tokenizer = make_tokenizer(CHATML)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    example = tokenise(load_records([GOOD]), tokenizer)[0]
    assert learned_words(example, tokenizer) == ["three", "<|im_end|>"]


def test_a_prompt_that_quotes_the_response_stays_masked():
    tokenizer = make_tokenizer(CHATML)
    example = tokenise(load_records([{"instruction": "three three", "response": "three"}]), tokenizer)[0]
    assert example.num_tokens == 2


def test_without_a_chat_template_the_plain_one_is_used():
    tokenizer = make_tokenizer(eos="</s>")
    examples = tokenise(load_records([GOOD]), tokenizer)
    assert examples.template == "plain"
    assert learned_words(examples[0], tokenizer) == ["three", "</s>"]
    words = tokenizer.convert_ids_to_tokens(examples[0].input_ids.tolist())
    assert words[:8] == ["###", "Instruction", ":", "\n", "add", "one", "and", "two"]


def test_offsets_and_prefixes_find_the_same_tokens(monkeypatch):
    tokenizer = make_tokenizer(CHATML)
    fast = tokenise(load_records([GOOD]), tokenizer)[0]
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    slow = tokenise(load_records([GOOD]), tokenizer)[0]
    np.testing.assert_array_equal(slow.labels, fast.labels)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name():
    roles = ["user", "assistant", "user", "assistant"]
    records = load_records([{"messages": [{"role": role, "content": "one"} for role in roles]}, GOOD])
    with pytest.raises(InvalidInputError, match=r"data\[0\].*rewrites turn 1.*generation"):
        tokenise(records, make_tokenizer(REWRITING))
    examples = tokenise(records, make_tokenizer(REWRITING), skip_bad=True)
    assert ([example.index for example in examples], len(examples.skipped)) == ([1], 1)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0]['content'] + 1 }}", "concatenate"),
    ],
)
def test_what_a_template_raises_names_the_record(template, says):
    with pytest.raises(InvalidInputError, match=rf"data\[0\].*{says}"):
        tokenise(load_records([GOOD]), make_tokenizer(template))
    assert len(tokenise(load_records([GOOD]), make_tokenizer(template), skip_bad=True).skipped) == 1


@pytest.mark.parametrize("template", [CHATML, MARKED, HEADED])
@pytest.mark.parametrize("first", ["one two", "x", ""])
def test_a_conversation_may_begin_with_the_assistant(template, first):
    tokenizer = make_tokenizer(template)
    turns = [("assistant", first), ("user", "add"), ("assistant", "three")]
    records = load_records([{"messages": [{"role": role, "content": text} for role, text in turns]}])
    words = tokenizer.tokenize(first)
    expected = [*words, "<|im_end|>", "three", "<|im_end|>"]
    assert learned_words(tokenise(records, tokenizer)[0], tokenizer) == expected


CALL = {"type": "function", "function": {"name": "four", "arguments": {}}}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": "add"}])
def test_calls_of_tools_are_learned(content, marked):
    turns = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "tool_calls": [CALL], **content},
        {"role": "tool", "content": "five", "name": "four"},
        {"role": "assistant", "content": "three"},
    ]
    records = load_records([{"messages": turns, "tools": [CALL["function"]]}])
    template = TOOLS if marked else TOOLS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer = make_tokenizer(template)
    example = tokenise(records, tokenizer)[0]
    words = tokenizer.tokenize(content.get("content") or "")
    assert learned_words(example, tokenizer) == [*words, "four", "<|im_end|>", "three", "<|im_end|>"]
    assert tokenizer.decode(example.input_ids).startswith("System four")
    others = load_records([{"messages": turns, "tools": json.dumps([{"name": "one"}])}])
    assert dataset_fingerprint(others) != dataset_fingerprint(records)


@pytest.mark.parametrize("turn", [{}, {"content": None}, {"content": "", "tool_calls": []}])
def test_a_turn_without_words_and_calls_is_none(turn):
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", **turn}]
    with pytest.raises(InvalidInputError, match="content|assistant turns that are all empty"):
        load_records([{"messages": turns}])


@pytest.mark.parametrize(
    ("template", "says"),
    [(CHATML, "leaves tool calls out"), (MARKED, "leaves tool calls out"), (None, "no chat template")],
)
def test_calls_of_tools_are_never_dropped_without_a_word(template, says):
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "tool_calls": [CALL]}]
    records = load_records([{"messages": turns}, GOOD])
    with pytest.raises(InvalidInputError, match=rf"data\[0\].*{says}"):
        tokenise(records, make_tokenizer(template))
    examples = tokenise(records, make_tokenizer(template), skip_bad=True)
    assert [example.index for example in examples] == [1]
    assert reasons(examples.skipped) == {"chat template": 1}


@pytest.mark.parametrize("tools", ["four", "[", 7, [object()], ["four"], '"four"'])
def test_tools_that_cannot_be_described_are_named_where_they_are_called(tools):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if tools == 7 or (not isinstance(tools, str) and not any(isinstance(each, str) for each in tools)):
        assert load_records([{"messages": turns, "tools": tools}])[0].tools is None
    else:
        with pytest.raises(InvalidInputError, match=r"field 'tools': found .*ignore_columns='tools'"):
            load_records([{"messages": turns, "tools": tools}])
    with pytest.raises(InvalidInputError, match="tools"):
        load_records([{"messages": [*turns, {"role": "assistant", "tool_calls": [CALL]}], "tools": tools}])


@pytest.mark.parametrize(
    "tools",
    [CALL["function"], [CALL["function"]], json.dumps(CALL["function"]), np.array([CALL["function"]])],
)
def test_tools_come_in_many_forms(tools):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": np.array([CALL])}]
    record = load_records([{"messages": turns, "tools": tools}])[0]
    assert record.tools == [CALL["function"]]
    assert record.messages[1].more == {"tool_calls": [CALL]}


def test_a_template_that_wants_the_calls_may_refuse_what_lacks_them():
    wanting = TOOLS.replace(
        "{% if m['role'] == 'assistant' %}",
        "{% if m['role'] == 'assistant' %}{% if not m.tool_calls and not m.content %}"
        "{{ raise_exception('says nothing') }}{% endif %}",
    )
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "tool_calls": [CALL]}]
    tokenizer = make_tokenizer(wanting)
    example = tokenise(load_records([{"messages": turns}]), tokenizer)[0]
    assert learned_words(example, tokenizer) == ["four", "<|im_end|>"]


def test_a_tokenizer_that_knows_of_no_tools_is_not_told_of_any(monkeypatch):
    tokenizer = make_tokenizer(CHATML)
    original = tokenizer.apply_chat_template

    def own(conversation, tokenize=True, add_generation_prompt=False):
        return original(conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt)

    monkeypatch.setattr(tokenizer, "apply_chat_template", own)
    assert len(tokenise(load_records([GOOD]), tokenizer)) == 1


def test_truncation_is_counted_and_keeps_the_start():
    tokenizer = make_tokenizer(CHATML)
    record = {"instruction": "add", "response": "one two three four"}
    full = tokenise(load_records([record, GOOD]), tokenizer)
    length = len(full[0].input_ids) - 4
    cut = tokenise(load_records([record]), tokenizer, max_length=length)
    assert (full.truncated, cut.truncated) == (0, 1)
    np.testing.assert_array_equal(cut[0].input_ids, full[0].input_ids[:length])
    assert cut[0].num_tokens < full[0].num_tokens


def test_a_sample_without_a_learned_token_is_an_error_or_a_counted_skip():
    tokenizer = make_tokenizer(CHATML)
    records = load_records([GOOD, {"input_ids": [1, 2, 3], "labels": [1, -100, -100]}])
    with pytest.raises(InvalidInputError, match=r"data\[0\].*max_length=4"):
        tokenise(records, tokenizer, max_length=4)
    with pytest.raises(InvalidInputError, match=r"data\[1\].*no learned token"):
        tokenise(records, tokenizer)  # the first label is never a target
    assert [example.index for example in tokenise(records, tokenizer, skip_bad=True)] == [0]


def test_num_tokens_counts_shifted_targets():
    records = load_records([{"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]}])
    assert tokenise(records, None)[0].num_tokens == 2


def test_completion_only_off_learns_everything():
    example = tokenise(load_records([GOOD]), make_tokenizer(CHATML), completion_only=False)[0]
    assert example.num_tokens == len(example.input_ids) - 1


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match="tokenizer"):
        tokenise(load_records([GOOD]), None)


def test_tokenizer_fingerprint_follows_vocabulary_and_template_but_not_state():
    tokenizer = make_tokenizer(CHATML)
    base = tokenizer_fingerprint(tokenizer)
    tokenizer(["one", "one two"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == base
    assert tokenizer_fingerprint(make_tokenizer(MARKED)) != base
    assert tokenizer_fingerprint(make_tokenizer(CHATML, eos="</s>")) != base
