"""Picks for LLaMA-Factory: the records as they were, and an entry by which it reads all that they say."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import pools
import spice_rs
from spice_rs import InvalidInputError, SpiceWarning

N = 40
ROWS = pools.law("opposed", N, 6, 2)
RECORDS = [{"instruction": f"do {i}", "input": "with ü" * (i % 2), "output": f"done {i}"} for i in range(N)]
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
]
CALL = json.dumps({"name": "look", "arguments": {"where": "harbour"}})


@pytest.fixture
def sel():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        return spice_rs.select(ROWS, 8, conflict_penalty=0.5)


def chat(*pairs, keys=("role", "content")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def share(*pairs):
    return chat(*pairs, keys=("from", "value"))


def read(prompt, response, system="", tools=None, images=None):
    return {"prompt": prompt, "response": response, "system": system, "tools": tools, "images": images}


def asked(i, **more):
    return read([("user", f"do {i}")], [("assistant", f"done {i}")], **more)


# Name → (record of row i, what LLaMA-Factory must make of it, stage, columns).
CASES = {
    "alpaca": (
        lambda i: RECORDS[i],
        lambda i: read([("user", f"do {i}" + "\nwith ü" * (i % 2))], [("assistant", f"done {i}")]),
        "sft",
        None,
    ),
    "alpaca, whole": (
        lambda i: {
            **RECORDS[i],
            "system": f"be {i}",
            "history": [["before", f"then {i}"]] * (i % 3),
            "id": i,
            "note": "unread",
        },
        lambda i: read(
            [("user", "before"), ("assistant", f"then {i}")] * (i % 3)
            + [("user", f"do {i}" + "\nwith ü" * (i % 2))],
            [("assistant", f"done {i}")],
            system=f"be {i}",
        ),
        "sft",
        None,
    ),
    "some fields in some records": (
        lambda i: {
            "instruction": f"do {i}",
            "output": f"done {i}",
            **({"input": "it", "system": "be kind"} if i % 3 == 0 else {}),
        },
        lambda i: read(
            [("user", f"do {i}" + ("\nit" if i % 3 == 0 else ""))],
            [("assistant", f"done {i}")],
            system="be kind" if i % 3 == 0 else "",
        ),
        "sft",
        None,
    ),
    "dolly": (
        lambda i: {
            "instruction": f"do {i}",
            "context": f"the ledger {i}",
            "response": f"done {i}",
            "category": "qa",
        },
        lambda i: read([("user", f"do {i}\nthe ledger {i}")], [("assistant", f"done {i}")]),
        "sft",
        None,
    ),
    "orca": (
        lambda i: {"id": i, "system_prompt": f"be {i}", "question": f"do {i}", "response": f"done {i}"},
        lambda i: asked(i, system=f"be {i}"),
        "sft",
        None,
    ),
    "other names": (
        lambda i: {"frage": f"do {i}", "antwort": f"done {i}", "wer": f"be {i}", "prompt": "not this"},
        lambda i: asked(i, system=f"be {i}"),
        "sft",
        {"prompt": "frage", "response": "antwort", "system": "wer"},
    ),
    "plain text": (
        lambda i: {"text": f"täxt {i}", "url": "u", "label": i % 2},
        lambda i: read([("user", f"täxt {i}")], []),
        "pt",
        None,
    ),
    "messages": (
        lambda i: {"messages": chat(("system", "be kind"), ("user", f"do {i}"), ("assistant", f"done {i}"))},
        lambda i: asked(i, system="be kind"),
        "sft",
        None,
    ),
    "messages with null beside the words": (
        lambda i: {
            "messages": [
                {"role": "user", "content": f"do {i}", "tool_calls": None, "name": None},
                {"role": "assistant", "content": f"done {i}", "tool_calls": [], "weight": 1},
            ]
        },
        asked,
        "sft",
        None,
    ),
    "sharegpt": (
        lambda i: {
            "conversations": share(
                ("human", "hi"), ("gpt", "hello"), ("human", f"do {i}"), ("gpt", f"done {i}")
            ),
            "system": f"be {i}",
        },
        lambda i: read(
            [("user", "hi"), ("assistant", "hello"), ("user", f"do {i}")],
            [("assistant", f"done {i}")],
            system=f"be {i}",
        ),
        "sft",
        None,
    ),
    "conversations with role and content": (
        lambda i: {"conversations": chat(("user", f"do {i}"), ("assistant", f"done {i}"))},
        asked,
        "sft",
        None,
    ),
    "messages with from and value": (
        lambda i: {"messages": share(("human", f"do {i}"), ("gpt", f"done {i}"))},
        asked,
        "sft",
        None,
    ),
    "another column": (
        lambda i: {"dialog": chat(("user", f"do {i}"), ("assistant", f"done {i}")), "messages": "none"},
        asked,
        "sft",
        {"messages": "dialog"},
    ),
    "calls in turns, tools as text": (
        lambda i: {
            "conversations": share(
                ("human", f"do {i}"), ("function_call", CALL), ("observation", "found"), ("gpt", f"done {i}")
            ),
            "tools": json.dumps(TOOLS),
        },
        lambda i: read(
            [("user", f"do {i}"), ("function", CALL), ("observation", "found")],
            [("assistant", f"done {i}")],
            tools=TOOLS,
        ),
        "sft",
        None,
    ),
    "calls in turns, tools as a list": (
        lambda i: {
            "messages": chat(
                ("developer", "be kind"),
                ("user", f"do {i}"),
                ("function_call", CALL),
                ("tool", "found"),
                ("assistant", f"done {i}"),
            ),
            "tools": TOOLS if i % 2 else [],
        },
        lambda i: read(
            [("user", f"do {i}"), ("function", CALL), ("observation", "found")],
            [("assistant", f"done {i}")],
            system="be kind",
            tools=TOOLS if i % 2 else [],
        ),
        "sft",
        None,
    ),
    "images in turns": (
        lambda i: {
            "messages": chat(("user", f"<image>do {i}"), ("assistant", f"done {i}")),
            "images": [f"img/{i}.png"],
        },
        lambda i: read([("user", f"<image>do {i}")], [("assistant", f"done {i}")], images=[f"img/{i}.png"]),
        "sft",
        None,
    ),
    "an image beside a prompt, in some records": (
        lambda i: {
            "instruction": "<image>" * (i % 2) + f"do {i}",
            "output": f"done {i}",
            "image": f"{i}.png" if i % 2 else None,
        },
        lambda i: read(
            [("user", "<image>" * (i % 2) + f"do {i}")],
            [("assistant", f"done {i}")],
            images=[f"{i}.png"] if i % 2 else None,
        ),
        "sft",
        None,
    ),
    "kto": (
        lambda i: {"prompt": f"do {i}", "completion": f"done {i}", "label": i % 2 == 0},
        lambda i: read([("user", f"do {i}")], judged(f"done {i}", i % 2 == 0)),
        "kto",
        None,
    ),
    "kto in turns": (
        lambda i: {"messages": chat(("user", f"do {i}"), ("assistant", f"done {i}")), "kto_tag": i % 2 == 0},
        lambda i: read([("user", f"do {i}")], judged(f"done {i}", i % 2 == 0)),
        "kto",
        None,
    ),
    "pairs": (
        lambda i: {"prompt": f"do {i}", "chosen": f"done {i}", "rejected": f"not done {i}", "score": 0.5},
        lambda i: read([("user", f"do {i}")], [("assistant", f"done {i}"), ("assistant", f"not done {i}")]),
        "dpo",
        None,
    ),
    "pairs of ms-swift": (
        lambda i: {
            "system": "be kind",
            "query": f"do {i}",
            "response": f"done {i}",
            "rejected_response": f"not done {i}",
        },
        lambda i: read(
            [("user", f"do {i}")],
            [("assistant", f"done {i}"), ("assistant", f"not done {i}")],
            system="be kind",
        ),
        "dpo",
        None,
    ),
    "capitals, marks of what is learned anyway, a system prompt twice": (
        lambda i: {
            "system": "be kind",
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "Human", "value": f"do {i}", "weight": 0},
                {"from": "GPT", "value": f"done {i}", "train": True, "masked": 0},
            ],
        },
        lambda i: asked(i, system="be kind"),
        "sft",
        None,
    ),
    "one tool": (
        lambda i: {"messages": chat(("user", f"do {i}"), ("assistant", f"done {i}")), "functions": TOOLS[0]},
        lambda i: asked(i, tools=TOOLS),
        "sft",
        None,
    ),
    "pairs in turns": (
        lambda i: {
            "conversations": share(("human", f"do {i}")),
            "chosen": share(("gpt", f"done {i}"))[0],
            "rejected": share(("gpt", f"not done {i}"))[0],
        },
        lambda i: read([("user", f"do {i}")], [("assistant", f"done {i}"), ("assistant", f"not done {i}")]),
        "dpo",
        None,
    ),
}


def judged(words, wanted):
    """As LLaMA-Factory notes it: the unwanted reply comes second."""
    replies = [("assistant", words), ("assistant", "")]
    return replies if wanted else replies[::-1]


def loaded(folder, name):
    """The entry, and the samples with the fields that each lacks as null, as `datasets` loads them."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    lines = (folder / entry["file_name"]).read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    names = dict.fromkeys(name for sample in samples for name in sample)
    return entry, [{name: sample.get(name) for name in names} for sample in samples]


def by_the_entry(folder, name):
    """What an entry says of each sample, as the documentation of LLaMA-Factory has it; None where it skips one."""
    entry, samples = loaded(folder, name)
    return [_by_entry(entry, sample) for sample in samples]


def _by_entry(entry, sample):
    columns = entry["columns"]
    assert set(columns.values()) <= sample.keys()
    of = {column: sample[name] for column, name in columns.items()}
    if entry["formatting"] == "alpaca":
        turns = [
            (role, words) for pair in of.get("history") or [] for role, words in zip(ROLES, pair, strict=True)
        ]
        turns.append(("user", "\n".join(filter(None, (of["prompt"], of.get("query"))))))
        system = of.get("system")
        replies = [of["response"]] if of.get("response") is not None else []
        if entry.get("ranking"):
            replies = [of["chosen"], of["rejected"]]
        replies = [("assistant", words) for words in replies]
    else:
        tags = entry["tags"]
        speakers = {tags[f"{role}_tag"]: role for role in (*ROLES, "observation", "function", "system")}
        assert len(speakers) == 5
        given = of["messages"] + ([of["chosen"], of["rejected"]] if entry.get("ranking") else [])
        turns = [(speakers[turn[tags["role_tag"]]], turn[tags["content_tag"]]) for turn in given]
        replies = [turns.pop() for _ in range(2)][::-1] if entry.get("ranking") else []
        system = turns.pop(0)[1] if turns[0][0] == "system" else of.get("system")
        for i, (role, _) in enumerate(turns):
            if role not in (("user", "observation"), ("assistant", "function"))[i % 2]:
                return None
        if len(turns) % 2 != bool(entry.get("ranking")):
            return None
        replies = replies or [turns.pop()]
    if "kto_tag" in of:
        replies = judged(replies[0][1], of["kto_tag"])
    tools = of.get("tools")
    images = of.get("images")
    return read(
        turns,
        replies,
        system=system or "",
        tools=json.loads(tools) if tools else None,
        images=[images] if isinstance(images, str) else images,
    )


ROLES = ("user", "assistant")


def by_llama_factory(folder, name):
    """What its own parser and converter make of each sample."""
    converter = pytest.importorskip("llamafactory.data.converter")
    parser = pytest.importorskip("llamafactory.data.parser")
    datasets = pytest.importorskip("datasets")
    attributes = parser.get_dataset_list([name], str(folder))[0]
    file = str(folder / attributes.dataset_name)
    data = datasets.load_dataset("json", data_files=[file], split="train", cache_dir=str(folder / "cache"))
    convert = converter.get_dataset_converter(
        attributes.formatting, attributes, SimpleNamespace(media_dir=str(folder))
    )
    return [_by_converter(convert(sample)) for sample in data]


def _by_converter(found):
    turns = {
        name: [(str(turn["role"]), turn["content"]) for turn in found[f"_{name}"]]
        for name in ("prompt", "response")
    }
    if not turns["prompt"]:
        return None
    tools = found["_tools"]
    return read(
        **turns,
        system=found["_system"] or "",
        tools=json.loads(tools) if tools else None,
        images=found["_images"],
    )


@pytest.mark.parametrize("reader", [by_the_entry, by_llama_factory])
@pytest.mark.parametrize("case", CASES)
def test_records_are_written_as_they_were_and_read_whole(sel, tmp_path, case, reader):
    record, expected, stage, columns = CASES[case]
    data, folder = [record(i) for i in range(N)], tmp_path / "new" / "data"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sel.to_llama_factory(folder, data, columns=columns) == stage
    rows = sel.indices.tolist()
    lines = (folder / "spice.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    for sample, row in zip(written, rows, strict=True):
        was = dict(data[row])
        for name in {"tools", "functions"} & was.keys():
            given = was[name]
            if not isinstance(given, str):
                assert json.loads(sample[name]) == ([given] if isinstance(given, dict) else given)
                was[name] = sample[name]
        assert sample == was
    assert reader(folder, "spice") == [expected(row) for row in rows]


def turns(*roles):
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


@pytest.mark.parametrize("reader", [by_the_entry, by_llama_factory])
def test_picks_that_llama_factory_skips_are_counted(sel, tmp_path, reader):
    data = [turns("user", "assistant") for _ in range(N)]
    a, b, c, d = sel.indices[[1, 3, 4, 6]].tolist()
    data[a] = turns("assistant", "user", "assistant")
    data[b] = turns("system", "user", "user", "assistant")
    data[c] = turns("system", "user", "assistant", "function", "assistant")  # fine
    data[d] = turns("user", "assistant", "user")
    with pytest.warns(
        SpiceWarning, match=rf"3 of 8 picks \(the first: data\[{a}\]\) will be skipped"
    ) as caught:
        sel.to_llama_factory(tmp_path, data)
    assert caught[0].filename == __file__
    found = reader(tmp_path, "spice")
    assert [i for i, sample in enumerate(found) if sample is None] == [1, 3, 6]
    assert [role for role, _ in found[4]["prompt"]] == ["user", "assistant", "observation"]


def test_other_data_sets_of_llama_factory_stay(sel, tmp_path):
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"alpaca_en": {"file_name": "ä.json"}, "theirs": {"hf_hub_url": "x/y"}}))
    sel.to_llama_factory(tmp_path, RECORDS, name="ours-10.pct")
    sel.head(3).to_llama_factory(tmp_path, RECORDS, name="ours-10.pct")  # ours, and so replaced
    entries = json.loads(info.read_text(encoding="utf-8"))
    assert list(entries) == ["alpaca_en", "theirs", "ours-10.pct"]
    assert entries["alpaca_en"] == {"file_name": "ä.json"}
    assert len(by_the_entry(tmp_path, "ours-10.pct")) == 3
    before = info.read_bytes()
    for name, says in {"theirs": "another data set", "a,b": "name: found", "../x": "name: found"}.items():
        with pytest.raises(InvalidInputError, match=says):
            sel.to_llama_factory(tmp_path, RECORDS, name=name)
    assert info.read_bytes() == before


ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"input_ids": [1, 2], "labels": [1, 2]}, "found token ids"),
        ({"instruction": "a"}, "expected the response"),
        ({"output": "a"}, "expected the prompt"),
        ({"id": 3}, "expected a prompt and a response, turns or text"),
        ({"instruction": "a", "output": None}, "expected the response"),
        ({"instruction": "a", "output": 3}, "a int as 'output', which LLaMA-Factory passes over"),
        ({"instruction": "a", "question": "b", "output": "c"}, "'instruction' and 'question', of which"),
        (
            {"instruction": "a", "input": "b", "context": "c", "output": "d"},
            "'input' and 'context', of which",
        ),
        ({"instruction": "a", "history": [["b"]], "output": "d"}, "a history that is no list"),
        ({"instruction": "a", "history": [["b", None]], "output": "d"}, "a history that is no list"),
        ({"prompt": [ASK], "completion": [REPLY]}, "found a list as 'prompt'"),
        ({"prompt": "a", "chosen": "b"}, "'chosen' alone"),
        ({"chosen": "b", "rejected": "c"}, "expected the prompt"),
        ({"prompt": "a", "output": "x", "chosen": "b", "rejected": "c"}, "'chosen' and 'output', of which"),
        ({"messages": [ASK, REPLY], "rejected_response": "c"}, "'rejected_response' alone"),
        ({"prompt": "a", "completion": "b", "label": 0}, "found 0 as 'label'"),
        ({"messages": [ASK, REPLY], "loss_mask": [0, 0]}, "found 'loss_mask' for messages[1]"),
        ({"messages": [ASK, REPLY, ASK, REPLY], "TurnMask": [0, 0, 0, 1]}, "'TurnMask' for messages[1]"),
        ({"messages": [ASK, REPLY, ASK, REPLY], "loss-mask": [1, 0]}, "'loss-mask' for messages[3]"),
        ({"messages": [ASK, REPLY], "masks": [0, 1, 0]}, "found 'masks', a mark that LLaMA-Factory does not"),
        ({"messages": [ASK, REPLY], "Train": False}, "found 'Train', a mark that LLaMA-Factory does not"),
        ({"prompt": "a", "completion": "b", "isMasked": 1}, "found 'isMasked', a mark that"),
        ({"prompt": "a", "completion": "b", "Label": False}, "found 'Label', a mark that"),
        ({"prompt": "a", "completion": "b", "label": "false"}, "found 'label', a mark that"),
        ({"messages": [ASK, REPLY], "label": True, "is_chosen": False}, "found 'is_chosen', a mark that"),
        ({"text": "a", "learned": "no"}, "found 'learned', a mark that"),
        ({"prompt": "a", "chosen": [ASK, REPLY], "rejected": [ASK, REPLY]}, "found a list as 'chosen'"),
        ({"messages": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, "found a list as chosen"),
        ({"messages": [ASK], "chosen": ASK, "rejected": REPLY}, "'chosen' that is not the assistant's"),
        ({"messages": []}, "expected a list of turns"),
        ({"messages": "[]"}, "found a str as 'messages'"),
        ({"messages": [ASK, "b"]}, "found a str as messages[1]"),
        ({"messages": [ASK, {"content": "b"}]}, "expected a speaker and its words"),
        ({"messages": [ASK, {"role": "narrator", "content": "b"}]}, "found 'narrator' as the speaker"),
        (
            {"messages": [ASK, {**REPLY, "content": [{"type": "text", "text": "b"}]}]},
            "found a list as the words",
        ),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]}, "tools and calls of them"),
        ({"messages": [ASK, {**REPLY, "function_call": {"name": "x"}}]}, "tools and calls of them"),
        ({"messages": [ASK, {**REPLY, "reasoning_content": "hm"}]}, "thoughts"),
        ({"messages": [ASK, {**REPLY, "weight": 0}]}, "found 'weight' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "train": False}]}, "found 'train' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "Train": "false"}]}, "found 'Train' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "Is-Masked": True}]}, "found 'Is-Masked' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "lossMask": 0}]}, "found 'lossMask' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "train_this": False}]}, "found 'train_this' in messages[1]"),
        ({"messages": [{**ASK, "weight": 1}, REPLY]}, "found 'weight' in messages[0]"),
        (
            {"messages": [ASK], "chosen": {**REPLY, "Weight": 0}, "rejected": REPLY},
            "found 'Weight' in chosen[0]",
        ),
        ({"messages": [ASK, {**REPLY, "loss_scale": 0.5}]}, "found 'loss_scale' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "masked": True}]}, "found 'masked' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "mask": 0}]}, "found 'mask' in messages[1]"),
        ({"messages": [ASK, {**REPLY, "train_detail": [{"train": False}]}]}, "found 'train_detail'"),
        (
            {"messages": [{"role": "system", "content": "a"}, ASK, REPLY], "system": "b"},
            "a turn of the system and",
        ),
        (
            {"messages": [ASK, REPLY], "chat_template_kwargs": {"think": True}},
            "'chat_template_kwargs', which",
        ),
        ({"messages": [ASK, REPLY], "tools": "no JSON"}, "'tools' that are no list"),
        ({"messages": [ASK, REPLY], "tools": ["look"]}, "'tools' that are no list"),
        ({"messages": [{"role": "user", "content": "<image>a"}, REPLY]}, "1 marks <image> and 0 images"),
        ({"messages": [{"role": "user", "content": "<video>a"}, REPLY], "images": []}, "1 marks <video>"),
        ({"messages": [ASK, REPLY], "images": ["a.png"]}, "0 marks <image> and 1 images"),
        ({"instruction": "<image>a", "output": "b", "images": ["a.png", "b.png"]}, "1 marks <image> and 2"),
        ({"instruction": "<image>a", "output": "b", "images": [{"path": "a.png"}]}, "a dict in 'images'"),
        (
            {"messages": [ASK, REPLY], "conversations": [ASK, REPLY]},
            "'messages' and 'conversations', of which",
        ),
        (
            {"prompt": "a", "response": "b", "system": "c", "system_prompt": "d"},
            "'system' and 'system_prompt'",
        ),
        (
            {"prompt": "<image>", "response": "b", "image": "a", "images": ["b"]},
            "'images' and 'image', of which",
        ),
        ({"text": "a", "system": "b"}, "'system' beside plain text"),
        ({"text": "a<image>"}, "1 marks <image>"),
    ],
)
def test_what_llama_factory_does_not_read_is_refused(sel, tmp_path, record, says):
    row = int(sel.indices[-1])
    for data in ([record] * N, [{**record} for _ in range(N)]):
        with pytest.raises(InvalidInputError) as caught:
            sel.to_llama_factory(tmp_path, data)
        assert says in str(caught.value)
        assert "Traceback" not in str(caught.value)
    assert str(caught.value).startswith(f"data[{int(sel.indices[0])}]: found")
    assert row != int(sel.indices[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "reply"),
    [
        ({}, {"weight": "1"}),
        ({}, {"masked": "false", "Loss-Weight": 1.0}),
        ({}, {"mask": 0}),
        ({"loss_mask": [0, 1]}, {}),
        ({"TurnMask": [1], "weight": 0.5}, {"train_detail": None}),
    ],
)
def test_marks_by_which_all_is_learned_do_no_harm(sel, tmp_path, more, reply):
    asked = {**ASK, **({"mask": 1} if "mask" in reply else {})}
    record = {"messages": [asked, {**REPLY, **reply}], **more}
    assert sel.to_llama_factory(tmp_path, [record] * N) == "sft"
    assert by_the_entry(tmp_path, "spice") == [read([("user", "a")], [("assistant", "b")])] * 8


def test_marks_count_where_columns_do_not_name_them(sel, tmp_path):
    data = [{"turns": [ASK, REPLY], "learned": [0, 0]}] * N
    with pytest.raises(InvalidInputError, match="'learned' for messages"):
        sel.to_llama_factory(tmp_path, data, columns={"messages": "turns"})


def test_arrays_of_pandas_are_lists(sel, tmp_path):
    """A data frame read from Parquet has arrays of objects for lists."""

    def array(*items):
        found = np.empty(len(items), object)
        found[:] = items
        return found

    chat = {
        "messages": array(ASK, {**REPLY, "name": None, "weight": np.int64(1)}),
        "tools": array(*TOOLS),
    }
    sel.to_llama_factory(tmp_path, [chat] * N, name="chats")
    expected = read([("user", "a")], [("assistant", "b")], tools=TOOLS)
    assert by_the_entry(tmp_path, "chats") == [expected] * 8
    pair = {
        "prompt": "<image>q",
        "response": "r",
        "history": array(array("a", "b")),
        "images": array("a.png"),
    }
    sel.to_llama_factory(tmp_path, [{**pair, "system": float("nan")}] * (N - 1) + [pair], name="pairs")
    assert "NaN" not in (tmp_path / "pairs.jsonl").read_text()
    before = [("user", "a"), ("assistant", "b"), ("user", "<image>q")]
    assert by_the_entry(tmp_path, "pairs")[0] == read(before, [("assistant", "r")], images=["a.png"])
    for wrong, says in (
        ({**chat, "messages": array()}, "a list as 'messages'"),
        ({**chat, "loss_mask": np.array([0, 0])}, "found 'loss_mask' for messages"),
        ({**chat, "tools": np.array([1])}, "'tools' that are no list"),
        ({**pair, "history": np.array(["a", "b"])}, "a history that is no list"),
        (
            {"messages": array(*chat["messages"]), "chosen": array(REPLY), "rejected": REPLY},
            "a list as chosen",
        ),
    ):
        with pytest.raises(InvalidInputError, match=says):
            sel.to_llama_factory(tmp_path, [wrong] * N)


def test_answers_that_are_dates_throughout_are_refused(sel, tmp_path):
    """`datasets` makes a column of times of them, and LLaMA-Factory passes over what is no text."""
    data = [{"instruction": f"When was {i}?", "output": f"20{i}-01-02"} for i in range(10, 10 + N)]
    with pytest.raises(InvalidInputError, match="nothing but dates such as '20.*' as 'output'"):
        sel.to_llama_factory(tmp_path, data)
    data[int(sel.indices[3])]["output"] = "never"
    sel.to_llama_factory(tmp_path, data)
    expected = [data[row]["output"] for row in sel.indices.tolist()]
    assert [sample["response"][0][1] for sample in by_the_entry(tmp_path, "spice")] == expected


SHARED = {"conversations": share(("human", "a"), ("gpt", "b"))}


@pytest.mark.parametrize(
    ("record", "other", "says"),
    [
        (
            {"text": "a"},
            {"prompt": "b", "response": "c"},
            "plain text (data[{}]) and a prompt and a response",
        ),
        (turns("user", "assistant"), RECORDS[0], "turns (data[{}]) and a prompt and a response"),
        (RECORDS[0], {"prompt": "a", "output": "b"}, "found 'prompt' and, in data[{}], 'instruction'"),
        (RECORDS[0], {"instruction": "a", "response": "b"}, "found 'response' and, in data[{}], 'output'"),
        (SHARED, {"messages": SHARED["conversations"]}, "'messages' and, in data[{}], 'conversations'"),
        (SHARED, {"conversations": [ASK, REPLY]}, "turns of 'role' and 'content', and in data[{}] of 'from'"),
        (
            turns("user", "assistant"),
            turns("human", "assistant"),
            "speakers 'human' and, in data[{}], 'user'",
        ),
        (
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "b"},
            "with a label (data[{}])",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "a chosen and a",
        ),
    ],
)
def test_one_entry_must_do_for_all_picks(sel, tmp_path, record, other, says):
    data = [record] * N
    data[int(sel.indices[-1])] = other
    with pytest.raises(InvalidInputError) as caught:
        sel.to_llama_factory(tmp_path, data)
    assert says.format(int(sel.indices[0])) in str(caught.value)
    assert f"data[{int(sel.indices[-1])}]" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_columns_that_leave_the_images_behind_are_refused(sel, tmp_path):
    data = [{"q": "<image>a", "a": "b", "images": ["a.png"]} for _ in range(N)]
    columns = {"prompt": "q", "response": "a"}
    with pytest.raises(InvalidInputError, match="1 marks <image> and 0 images and no column 'images'"):
        sel.to_llama_factory(tmp_path, data, columns=columns)
    sel.to_llama_factory(tmp_path, data, columns={**columns, "images": "images"})
    assert by_the_entry(tmp_path, "spice")[0]["images"] == ["a.png"]
    with pytest.raises(InvalidInputError, match="columns: found 'pictures', expected fields of"):
        sel.to_llama_factory(tmp_path, data, columns={"pictures": "images"})


def test_columns_that_are_null_throughout_are_no_columns(sel, tmp_path):
    data = [{**record, "system": None, "images": None, "label": None, "chosen": None} for record in RECORDS]
    assert sel.to_llama_factory(tmp_path, data) == "sft"
    entry, _ = loaded(tmp_path, "spice")
    assert entry["columns"] == {"prompt": "instruction", "response": "output", "query": "input"}


def test_records_that_are_missing_are_named(sel, tmp_path):
    with pytest.raises(InvalidInputError, match="data: found no record"):
        sel.to_llama_factory(tmp_path, RECORDS[:5])
    assert list(tmp_path.iterdir()) == []


def test_a_second_round_keeps_what_the_first_wrote(tmp_path):
    first = [{**record, "spice": {"index": i, "rank": i}} for i, record in enumerate(RECORDS)]
    sel = spice_rs.select(ROWS, 3)
    sel.to_llama_factory(tmp_path, first)
    _, samples = loaded(tmp_path, "spice")
    assert samples == [first[row] for row in sel.indices.tolist()]


def test_a_broken_dataset_info_is_named(sel, tmp_path):
    for contents in ("{", "[]"):
        (tmp_path / "dataset_info.json").write_text(contents)
        with pytest.raises(InvalidInputError, match=r"dataset_info\.json: found"):
            sel.to_llama_factory(tmp_path, RECORDS)
    with pytest.raises(InvalidInputError, match="found a file, expected a folder"):
        sel.to_llama_factory(tmp_path / "dataset_info.json", RECORDS)


def test_the_commands_have_the_names_of_columns_and_of_the_data_set(tmp_path, capsys):
    """Somebody else's key "spice" is none of LLaMA-Factory's business."""
    from command import run

    np.save(tmp_path / "rows.npy", ROWS)
    data = [{"frage": f"do {i}", "antwort": f"done {i}", "spice": "salt"} for i in range(N)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in data))
    sel = spice_rs.select(ROWS, 3, conflict_penalty=0.5)
    sel.save(tmp_path / "sel")
    given = [
        "--data",
        tmp_path / "pool.jsonl",
        "--name",
        "mine",
        "--columns",
        "prompt=frage,response=antwort",
    ]
    assert run("export-picks", tmp_path / "sel", *given, "--llama-factory", tmp_path / "lf") == 0
    expected = [asked(row) for row in sel.indices.tolist()]
    assert by_the_entry(tmp_path / "lf", "mine") == expected
    for record in data:
        del record["spice"]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in data))
    select = [
        "select",
        tmp_path / "rows.npy",
        "-k",
        3,
        "--conflict-penalty",
        0.5,
        "--out",
        tmp_path / "picks",
    ]
    assert run(*select, *given, "--llama-factory", tmp_path / "new") == 0
    assert by_the_entry(tmp_path / "new", "mine") == expected
    assert "3 samples as 'mine'" in capsys.readouterr().err


def test_data_that_cannot_be_read_are_found_before_the_selection(tmp_path, capsys, monkeypatch):
    from command import run
    from spice_rs import _core

    monkeypatch.setattr(_core, "select", None)
    np.save(tmp_path / "rows.npy", ROWS)
    chats = "".join(json.dumps({"messages": [ASK, {**REPLY, "tool_calls": [{}]}]}) + "\n" for _ in range(N))
    (tmp_path / "pool.jsonl").write_text("not JSON, and left out\n" + chats)
    arguments = ["--data", tmp_path / "pool.jsonl", "--llama-factory", tmp_path / "lf"]
    assert run("select", tmp_path / "rows.npy", "-k", 3, *arguments) == 2
    assert "pool.jsonl, line 2: found 'tool_calls' in messages[1]" in capsys.readouterr().err
