"""Chat templates: what they show, what of it is learned, and what is said where they cannot be followed.

The templates are small ones that behave like those of well-known models. The tokenizer has a token for each byte and
for each special token, so that what is learned can be read letter by letter.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import types

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import spice_rs
from command import run as command
from models import make_model
from spice_rs.data.dataset import load_records, tokenise, tokenizer_fingerprint
from spice_rs.data.records import Message, Record
from spice_rs.data.special import SpecialTokens, shared_prefix
from spice_rs.data.templates import read_template
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError

pytestmark = pytest.mark.filterwarnings("ignore:gradients cover")  # a small model's norms are a part of it
SPECIAL = (
    "<s> </s> <|im_start|> <|im_end|> <|start|> <|end|> <|return|> <|call|> <|channel|> <|message|> <|user|> <|system|> "
    "<|assistant|> <|tool|> <|endoftext|> <|head|> <|eot|> <|bot|> <turn> <end_turn>"
).split()


def make_tokenizer(chat_template=None, *, bos=None, eos="<|im_end|>", named=True):
    """`named`: the special tokens are in `all_special_ids`, not only added."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if not named:
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.add_special_tokens([bos])
        number = backend.token_to_id(bos)
        backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    more = {"additional_special_tokens": [token for token in SPECIAL if token != eos]} if named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token=bos, chat_template=chat_template, **more
    )


def turns(*pairs, **more):
    return [{"role": role, "content": content, **more} for role, content in pairs]


def as_records(messages, tools=None):
    return load_records([{"messages": messages, **({"tools": tools} if tools else {})}])


def examples_of(template, messages, *, tools=None, eos="<|im_end|>", bos=None, **options):
    tokenizer = make_tokenizer(template, eos=eos, bos=bos)
    if not isinstance(messages, list) or not isinstance(messages[0], Record):
        messages = as_records(messages, tools)
    return tokenise(messages, tokenizer, **options), tokenizer


def learned(template, messages, **options):
    """The runs of learned tokens, as text."""
    examples, tokenizer = examples_of(template, messages, **options)
    runs, before = [], False
    for token, label in zip(examples[0].input_ids.tolist(), examples[0].labels.tolist(), strict=True):
        if label != -100:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = label != -100
    return [tokenizer.decode(run) for run in runs]


def text_of(template, messages, **options):
    examples, tokenizer = examples_of(template, messages, **options)
    return tokenizer.decode(examples[0].input_ids)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% if messages[0].role == 'system' %}{% set head = '<<' + messages[0].content + '>>\n\n' %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}<s>[I] {{ head if loop.first else '' }}{{ m.content | trim }} [/I]"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
HEADERS = (
    "{% for m in messages %}{% if loop.first %}<s>{% endif %}<|head|>{{ m.role }}<|head|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|head|>\n\n{% endif %}"
)
TURNS = (
    "<s>{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "<turn>{{ role }}\n{{ m.content | trim }}<end_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
BARE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}<|endoftext|>{% else %}"
    "<|user|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_PROMPT = "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else m.content + '</s>' }}{% endfor %}"
TOOLS = (
    "{% for t in tools or [] %}<|tool|>{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\\n' }}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STABLE = {
    "chatml": CHATML,
    "inst": INST,
    "headers": HEADERS,
    "turns": TURNS,
    "bare": BARE,
    "words": WORDS,
    "no prompt": NO_PROMPT,
    "tools": TOOLS,
}

# The end of the text differs from the end of a turn.
ENDED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Thoughts are shown behind the last user turn alone, and an empty one is written in the last turn.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set words = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set words = words.split('</think>')[-1].lstrip() %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ words }}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Channels; the last turn ends with a token of its own, and thoughts are shown in it alone.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{%- generation -%}"
    "{{ m.content }}<|im_end|>{%- endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DIALOGUE = turns(("user", "hi"), ("assistant", "ho"), ("user", "hi"), ("assistant", "hey"))


# ------------------------------------------------------------------------------------------------ what is learned


def by_prefixes(tokenizer, messages):
    """What each assistant turn adds to the conversation before it: right where nothing earlier is ever rewritten."""
    texts = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(
                messages[:number], tokenize=False, add_generation_prompt=True
            )
            whole = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
            assert whole.startswith(prompt)
            texts.append(whole[len(prompt) :])
    return texts


@pytest.mark.parametrize("name", STABLE)
def test_where_nothing_is_rewritten_it_is_what_each_turn_adds(name):
    draw = random.Random(name)
    for _ in range(25):
        messages = turns(("system", "Be brief."))[: draw.randint(0, 1)] if name != "no prompt" else []
        for _ in range(draw.randint(1, 4)):
            words = [
                "",
                "a",
                "hi",
                "x y",
                "two\nlines",
                " padded ",
                "</think>",
                "{{ 7 }}",
                "user",
                "ünïcode 🙂",
            ]
            user, assistant = draw.choice(words[1:]), draw.choice(words[1:-3])
            messages += turns(("user", user), ("assistant", assistant))
        tokenizer = make_tokenizer(STABLE[name])
        # White space behind an end token is not learned.
        expected = [
            re.sub(r"(<[^<>]*(?:\||turn|/s)[^<>]*>)\n$", r"\1", text)
            for text in by_prefixes(tokenizer, messages)
        ]
        assert learned(STABLE[name], messages) == expected
        assert text_of(STABLE[name], messages) == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("before", [[], turns(("system", "Be brief."))])
@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (ENDED, "<|endoftext|>", ["ho<|end|>", "hey<|end|>\n<|endoftext|>"]),
        (THINKING, "<|im_end|>", ["ho<|im_end|>", "<think>\n\n</think>\n\nhey<|im_end|>"]),
        (
            CHANNELS,
            "<|return|>",
            ["<|channel|>final<|message|>ho<|end|>", "<|channel|>final<|message|>hey<|return|>"],
        ),
    ],
    ids=["ended", "thinking", "channels"],
)
def test_templates_that_write_earlier_turns_otherwise_are_followed(before, template, eos, expected):
    assert learned(template, [*before, *DIALOGUE], eos=eos) == expected
    assert learned(template, [*before, *DIALOGUE[:2]], eos=eos) == [expected[1].replace("hey", "ho")]


def with_marks(template, head, body, end):
    """The template with marks around what it writes for an assistant between the head and the end of a turn."""
    assert f"{head}{body}{end}" in template
    said = f"{{% if m.role == 'assistant' %}}{{% generation %}}{body}{{% endgeneration %}}{{% else %}}{body}{{% endif %}}"
    return template.replace(f"{head}{body}{end}", f"{head}{said}{{{{ {end!r} }}}}")


@pytest.mark.parametrize(
    ("template", "eos", "marked"),
    [
        (
            TOOLS,
            "<|im_end|>",
            with_marks(
                TOOLS, "{{ m.role }}\n", TOOLS.split("{{ m.role }}\n")[1].split("\n{% endfor")[0], "\n"
            ),
        ),
        (
            THINKING,
            "<|im_end|>",
            with_marks(
                THINKING, "{{ m.role }}\n", THINKING.split("{{ m.role }}\n")[1].split("\n{% endfor")[0], "\n"
            ),
        ),
        (
            ENDED,
            "<|endoftext|>",
            with_marks(ENDED, "|>\n", "{{ m.content }}<|end|>\n", "").replace(
                "{{ eos_token }}", "{% generation %}{{ eos_token }}{% endgeneration %}"
            ),
        ),
        (
            CHANNELS,
            "<|return|>",
            CHANNELS.replace(
                "<|start|>assistant<|channel|>", "{{ '<|start|>assistant' }}{% generation %}<|channel|>"
            )
            .replace("<|return|>", "<|return|>{% endgeneration %}")
            .replace("<|end|>{% endif %}{% else %}", "<|end|>{% endgeneration %}{% endif %}{% else %}")
            .replace("{{ m.thinking }}<|end|>", "{{ m.thinking }}<|end|>{% endgeneration %}"),
        ),
    ],
    ids=["tools", "thinking", "ended", "channels"],
)
def test_differences_and_marks_find_the_same(template, eos, marked):
    """Conversations of all kinds, by a template and by the same with marks where the model speaks."""
    draw = random.Random(1)
    for _ in range(40):
        messages = turns(("system", "s"))[: draw.randint(0, 1)] + turns(("user", "hi"))
        while len(messages) < draw.randint(3, 8) or messages[-1]["role"] != "assistant":
            role = draw.choice(["user", "assistant", "assistant", "tool"])
            messages += turns(
                (role, draw.choice(["a", "hi", "two\nlines", "<|im_start", "assistant", "ünï"]))
            )
        assert learned(template, messages, eos=eos) == [
            text.rstrip("\n") for text in learned(marked, messages, eos=eos)
        ]


def test_thoughts_of_the_last_turn_are_learned():
    message = {"role": "assistant", "content": "blue", "reasoning_content": "the sky"}
    shown = "<think>\nthe sky\n</think>\n\nblue<|im_end|>"
    assert learned(THINKING, [*DIALOGUE[:3], message]) == ["ho<|im_end|>", shown]
    tagged = {"role": "assistant", "content": "<think>\nthe sky\n</think>\n\nblue"}
    assert learned(THINKING, [*DIALOGUE[:3], tagged]) == ["ho<|im_end|>", shown]
    assert learned(CHATML, [DIALOGUE[0], tagged]) == ["<think>\nthe sky\n</think>\n\nblue<|im_end|>"]
    thinking = {"role": "assistant", "content": "blue", "thinking": "the sky"}
    assert learned(CHANNELS, [*DIALOGUE[:3], thinking], eos="<|return|>")[1] == (
        "<|channel|>analysis<|message|>the sky<|end|><|start|>assistant<|channel|>final<|message|>blue<|return|>"
    )


def test_what_the_prompt_opens_is_not_learned():
    opened = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert learned(opened, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]  # its text has no thoughts
    assert learned(opened, turns(("user", "hi"), ("assistant", "<b>ho</b>"))) == ["<b>ho</b><|im_end|>"]
    thought = turns(("user", "hi"), ("assistant", "<think>\nso\n</think>\nho"))
    assert learned(opened, thought) == ["so\n</think>\nho<|im_end|>"]


def test_a_prompt_unlike_the_head_of_the_turn_is_named():
    other = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>helper\n{% endif %}")
    with pytest.raises(InvalidInputError, match=r"data\[0\].*rewrites turn 1 \(assistant\)"):
        learned(other, DIALOGUE[:2])


TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": {}}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3}},
}
CALLING = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is sunny."},
]
CALLED = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}</tool_call><|im_end|>'


def test_calls_are_learned_with_the_words_beside_them():
    assert learned(TOOLS, CALLING, tools=[TOOL]) == [f"I look.\n{CALLED}", "It is sunny.<|im_end|>"]
    silent = [CALLING[0], {"role": "assistant", "tool_calls": [CALL, CALL]}, *CALLING[2:]]
    both = f"\n{CALLED.removesuffix('<|im_end|>')}\n{CALLED}"
    assert learned(TOOLS, silent, tools=[TOOL]) == [both, "It is sunny.<|im_end|>"]
    # Tools that stand before the last user turn, so that they move.
    moving = TOOLS.replace("{% for t in tools or [] %}<|tool|>{{ t | tojson }}\n{% endfor %}", "").replace(
        "{% for m in messages %}",
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% if loop.index0 == ns.last %}{% for t in tools or [] %}<|tool|>"
        "{{ t | tojson }}\n{% endfor %}{% endif %}",
    )
    longer = [*CALLING, *turns(("user", "And now?"), ("assistant", "Rain."))]
    assert learned(moving, longer, tools=[TOOL]) == [
        f"I look.\n{CALLED}",
        "It is sunny.<|im_end|>",
        "Rain.<|im_end|>",
    ]


def test_the_head_of_a_turn_that_nobody_asked_for_is_not_learned():
    always = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
    always += "{{ '<|im_start|>assistant\n' }}"
    assert learned(always, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]
    assert learned(always, DIALOGUE[:2]) == ["ho<|im_end|>"]
    (note,) = examples_of(always, DIALOGUE)[0].notes
    assert note.startswith(
        "the chat template writes '<|im_start|>assistant' behind the last turn of 1 record"
    )
    assert not examples_of(CHATML, DIALOGUE)[0].notes
    assert text_of(always, DIALOGUE[:2]).endswith("ho<|im_end|>\n<|im_start|>assistant\n")
    untold = WORDS.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    with pytest.raises(InvalidInputError, match=r"data\[0\].*'assistant: '|data\[0\].*rewrites turn 1"):
        learned(untold, DIALOGUE)
    with pytest.raises(InvalidInputError, match=r"data\[0\].*add_generation_prompt.*chat_template=FILE"):
        learned(untold, DIALOGUE[:2])


def test_turns_that_are_context_are_not_learned():
    def record(*flags):
        messages = [Message(turn["role"], turn["content"]) for turn in DIALOGUE]
        messages[1] = Message("assistant", "ho", {}, flags[0])
        messages[3] = Message("assistant", "hey", {}, flags[1])
        return [Record(0, "data[0]", tuple(messages))]

    for template, eos in ((CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (None, "</s>")):
        end = "</s>" if template is None else "<|im_end|>"
        assert learned(template, record(False, True), eos=eos) == [f"hey{end}"]
        assert learned(template, record(True, False), eos=eos) == [f"ho{end}"]
    for template in (CHATML, MARKED):
        everything = learned(template, record(False, True), completion_only=False)
        assert everything[0] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert everything[1].strip() == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhey<|im_end|>"
        assert len(everything) == 2
    with pytest.raises(InvalidInputError, match="no learned token"):
        learned(CHATML, record(False, False))


# ---------------------------------------------------------------------------------------------- what is left out

FULL = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "Say no more."},
    *CALLING,
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]


def without(condition):
    """ChatML that leaves out the content of the turns for which the condition holds."""
    return TOOLS.replace("{{ m.content }}", "{% if not (" + condition + ") %}{{ m.content }}{% endif %}")


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        (
            "m.role == 'system'",
            r"turn 0 \(system\).*leaves out its content \('Be brief.'\).*chat_template=FILE",
        ),
        ("m.role == 'developer'", r"turn 1 \(developer\).*content"),
        ("m.role == 'tool'", r"turn 4 \(tool\).*leaves out its content \('sunny'\)"),
        ("m.role == 'user' and loop.first is false and loop.index0 > 2", r"turn 6 \(user\).*content \('a'\)"),
        ("m.tool_calls", r"turn 3 \(assistant\).*content \('I look.'\)"),
        ("loop.last", r"turn 7 \(assistant\).*content \('b'\)"),
    ],
)
def test_the_content_of_every_turn_is_shown_or_named(condition, says):
    assert learned(TOOLS, FULL, tools=[TOOL])[-1] == "b<|im_end|>"
    with pytest.raises(InvalidInputError, match=rf"data\[0\]: .*{says}"):
        learned(without(condition), FULL, tools=[TOOL])
    records = load_records([{"messages": FULL, "tools": [TOOL]}, {"messages": CALLING[:1] + CALLING[3:]}])
    examples = tokenise(records, make_tokenizer(without("m.role in ['system', 'developer']")), skip_bad=True)
    assert [example.index for example in examples] == [1]
    assert examples.skipped[0].reason == "chat template"


def test_a_turn_that_stands_there_by_chance_is_not_shown():
    messages = turns(("system", "e"), ("user", "hi"), ("assistant", "yes"))  # an "e" is in the text anyway
    with pytest.raises(InvalidInputError, match=r"turn 0 \(system\)"):
        learned(without("m.role == 'system'"), messages)
    with pytest.raises(InvalidInputError, match=r"turn 2 \(user\)"):  # the same words as turn 0
        learned(without("m.role == 'user' and not loop.first"), DIALOGUE)


@pytest.mark.parametrize(
    "change", ["[:5]", ".replace('there', 'them')", "[1:]", ".split('.')[-1]", "| upper"]
)
def test_a_content_that_is_cut_or_altered_is_named(change):
    template = CHATML.replace("m.content", f"(m.content{change})")
    with pytest.raises(InvalidInputError, match=r"turn 0 \(user\).*(leaves out|alters) its content"):
        learned(template, turns(("user", "Hello. You there"), ("assistant", "ho")))


@pytest.mark.parametrize(
    ("shown", "content"),
    [
        ("m.content | trim", "  a\n b\n\n"),
        ("m.content.lstrip()", "\n a "),
        ("m.content | tojson", 'say "hi"\n\\ there é'),
        ("m.content | tojson(ensure_ascii=true)", 'say "hi"\n\\ there é 🙂'),
        ("m.content | e", "a < b & \"c\" 'd'"),
        ("m.content | replace('\r\n', '\n')", "two\r\nlines"),
        ("'x' if m.content == 'y' else m.content", "plain"),
        ("('x ' if m.content.startswith('pl') else '') + m.content", "plain"),
        ("('x ' if m.content.startswith('plain w') else '') + m.content", "plain words"),
    ],
)
def test_white_space_and_escapes_are_no_loss(shown, content):
    template = CHATML.replace("m.content", f"({shown} if m.role == 'user' else m.content)")
    assert learned(template, turns(("user", content), ("assistant", "ho"))) == ["ho<|im_end|>"]


def test_contents_go_in_parts_to_templates_that_take_nothing_else():
    parts = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    seeing = CHATML.replace("{{ m.content }}", parts)
    assert learned(seeing, [*turns(("system", "s")), *DIALOGUE]) == ["ho<|im_end|>", "hey<|im_end|>"]
    either = CHATML.replace(
        "{{ m.content }}", "{% if m.content is string %}{{ m.content }}{% else %}" + parts + "{% endif %}"
    )
    assert text_of(either, DIALOGUE) == text_of(CHATML, DIALOGUE) == text_of(seeing, DIALOGUE)
    for cut in ("m.content[:1]", "m.content | string | truncate(3)"):
        template = either.replace("{{ m.content }}{% else %}", "{{ " + cut + " }}{% else %}{{ m.content }}")
        with pytest.raises(InvalidInputError, match=r"turn 0 \(user\).*its content"):
            learned(template, turns(("user", "long words"), ("assistant", "ho")))


def test_instructions_may_stand_elsewhere_and_turns_may_not():
    folded = INST.replace("head if loop.first", "head if loop.index0 + 1 == rest | length - 1")
    messages = [*turns(("system", "Be brief.")), *DIALOGUE]
    assert "[I] <<Be brief.>>\n\nhi [/I] hey" in text_of(folded, messages)
    assert learned(folded, messages) == [" ho </s>", " hey </s>"]
    turned = CHATML.replace("in messages", "in messages | reverse")
    with pytest.raises(InvalidInputError, match=r"turn 1 \(assistant\) before turn 0|refuses|rewrites"):
        learned(turned, DIALOGUE[:2])


@pytest.mark.parametrize("content", ["<think>\nthe sky\n</think>\n\nblue", "the sky</think>blue"])
def test_thoughts_that_are_dropped_are_named(content):
    messages = [DIALOGUE[0], {"role": "assistant", "content": content}, *DIALOGUE[2:]]
    with pytest.raises(
        InvalidInputError, match=r"turn 1 \(assistant\).*thoughts.*<think>.*one sample per assistant turn"
    ):
        learned(THINKING, messages)
    cutting = CHATML.replace("m.content", "(m.content.split('</think>')[-1])")
    with pytest.raises(InvalidInputError, match=r"turn 1 \(assistant\).*thoughts between <think>"):
        learned(cutting, messages[:2])
    reasoning = {"role": "assistant", "content": "blue", "reasoning_content": "the sky"}
    with pytest.raises(InvalidInputError, match=r"turn 1 \(assistant\).*'reasoning_content' \('the sky'\)"):
        learned(CHATML, [DIALOGUE[0], reasoning])
    with pytest.raises(
        InvalidInputError, match=r"turn 1 \(assistant\): found 'reasoning_content'.*no chat template"
    ):
        learned(None, [DIALOGUE[0], reasoning])


def test_thoughts_of_context_may_go_as_they_do_when_the_model_is_used():
    thought = Message("assistant", "ho", {"reasoning_content": "so"}, learned=False)
    tagged = Message("assistant", "<think>\nso\n</think>\n\nho", learned=False)
    for earlier in (thought, tagged):
        record = Record(
            0, "data[0]", (Message("user", "hi"), earlier, Message("user", "hi"), Message("assistant", "hey"))
        )
        assert learned(THINKING, [record]) == ["<think>\n\n</think>\n\nhey<|im_end|>"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("c.function | tojson", "c.function.name"), r"turn 1 \(assistant\).*leaves tool calls out.*'Oslo'"),
        (
            ("c.function | tojson", "c.function.arguments | tojson"),
            r"turn 1 \(assistant\).*calls out.*'weather'",
        ),
        (
            ("in m.tool_calls or []", "in (m.tool_calls or [])[1:]"),
            r"turn 1 \(assistant\).*leaves tool calls out",
        ),
        (("in tools or []", "in []"), r"description of the tool 'weather'"),
    ],
)
def test_every_part_of_calls_and_every_tool_is_shown_or_named(change, says):
    with pytest.raises(InvalidInputError, match=rf"data\[0\]: .*{says}"):
        learned(TOOLS.replace(*change), CALLING, tools=[TOOL])


@pytest.mark.parametrize("arguments", [{"days": 3}, {"days": [0.5]}, {"late": False}])
def test_no_argument_of_a_call_is_left_out(arguments):
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [CALLING[0], {"role": "assistant", "tool_calls": [call]}]
    (name,) = arguments
    assert name in learned(TOOLS, messages)[-1]
    for shown in ("c.function.name", "c.function.name ~ c.function.arguments.values() | list"):
        with pytest.raises(InvalidInputError, match=rf"turn 1 \(assistant\).*its arguments \('{name}'\)"):
            learned(TOOLS.replace("c.function | tojson", shown), messages)


def test_names_of_speakers_are_shown_or_named():
    messages = [{"role": "user", "content": "hi", "name": "Ada"}, *turns(("assistant", "ho"))]
    with pytest.raises(InvalidInputError, match=r"turn 0 \(user\).*leaves out its name \('Ada'\)"):
        learned(CHATML, messages)
    naming = CHATML.replace("{{ m.role }}", "{{ m.role }}{{ ' ' + m.name if m.name else '' }}")
    assert learned(naming, messages) == ["ho<|im_end|>"]


# -------------------------------------------------------------------------------------------------------- marks


def test_marks_are_used_as_they_stand():
    assert learned(MARKED, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]
    # The words alone, without the end token: the template's own choice.
    bare = MARKED.replace("<|im_end|>{%- endgeneration %}", "{%- endgeneration %}<|im_end|>")
    assert learned(bare, DIALOGUE) == ["ho", "hey"]
    # The last turn alone.
    last = bare.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    assert learned(last, DIALOGUE) == ["hey"]
    first = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    first += "{% else %}|{{ m.content }}|{% endif %}{% endfor %}"
    opening = [*turns(("assistant", "A")), *DIALOGUE]
    assert learned(first, opening)[1:] == [
        "ho",
        "hey",
    ]  # nothing predicts the first token; the second is not learned
    spaced = MARKED.replace("{{ m.content }}<|im_end|>{%-", "\n{{ m.content }}<|im_end|>\n  {%-")
    assert learned(spaced, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]


def test_marks_in_a_macro_are_where_the_words_are():
    macro = (
        "{% macro said(m) %}<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ said(m) }}{% else %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert learned(macro, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]


@pytest.mark.parametrize("wrong", ["user", "both", "part"])
def test_marks_that_contradict_the_words_are_not_used(wrong):
    template = {
        "user": MARKED.replace("m.role == 'assistant'", "m.role == 'user'"),
        "both": MARKED.replace("m.role == 'assistant'", "true"),
        "part": MARKED.replace(
            "{%- generation -%}{{ m.content }}", "{{ m.content[:1] }}{% generation %}{{ m.content[1:] }}"
        ),
    }[wrong]
    assert learned(template, DIALOGUE) == ["ho<|im_end|>", "hey<|im_end|>"]


def test_marked_templates_leave_nothing_out_either():
    silent = MARKED.replace("{% else %}{{ m.content }}", "{% else %}{{ m.content if m.role != 'system' }}")
    with pytest.raises(InvalidInputError, match=r"turn 0 \(system\)"):
        learned(silent, [*turns(("system", "s")), *DIALOGUE])


# ------------------------------------------------------------------------------------------- the date, and options

DATED = "<|system|>{{ strftime_now('%d %b %Y') }}\n" + CHATML


def test_a_template_is_told_one_date():
    day = datetime.date(2024, 3, 5)
    assert text_of(DATED, DIALOGUE, today=day).startswith("<|system|>05 Mar 2024\n")
    assert learned(DATED, DIALOGUE, today=day) == ["ho<|im_end|>", "hey<|im_end|>"]
    rich = (
        "{%- macro head() -%}{% if strftime_now is defined %}{{ strftime_now(format) }}|"
        "{{ strftime_now('%-d. %B, %H:%M 100%%') }}{% endif %}{%- endmacro -%}{% set format = '%Y-%m-%d' %}{{ head() }}"
    )
    text = text_of(rich.replace("format)", "'%Y-%m-%d')") + CHATML, DIALOGUE, today=day)
    assert text.startswith("2024-03-05|5. March, 00:00 100%<|im_start|>")
    examples, _ = examples_of(DATED, DIALOGUE)
    assert examples.template_date == datetime.date.today()
    never = "{% if messages | length > 99 %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
    assert examples_of(never, DIALOGUE)[0].template_date is None
    assert examples_of(CHATML, DIALOGUE)[0].template_date is None


@pytest.fixture
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return make_model(vocab_size=300, max_position_embeddings=512, **sizes)


@pytest.fixture
def on(monkeypatch):
    """Sets the day that it is."""
    calendar = types.SimpleNamespace(date=datetime.date)
    for module in ("data.tokenising", "extraction.inputs"):
        monkeypatch.setattr(f"spice_rs.{module}.datetime", calendar)

    def day(*numbers):
        calendar.date = type(
            "Day", (datetime.date,), {"today": classmethod(lambda cls: datetime.date(*numbers))}
        )

    return day


def rows_of(store):
    return store.read(store.positions([0, 1]))


def test_a_resume_on_another_day_uses_the_recorded_date(tmp_path, model, on):
    data = [{"messages": DIALOGUE}, {"messages": DIALOGUE[:2]}]
    tokenizer = make_tokenizer(DATED)
    on(2026, 11, 30)
    store = spice_rs.extract(model, data, tmp_path / "s", tokenizer=tokenizer, dim=8, limit=1)
    assert store.provenance["template_date"] == "2026-11-30"
    on(2026, 12, 1)
    assert spice_rs.plan(model, data, tmp_path / "s", tokenizer=tokenizer, dim=8).rows == 1
    grown = spice_rs.extract(model, data, tmp_path / "s", tokenizer=tokenizer, dim=8)
    assert grown.provenance["template_date"] == "2026-11-30"
    on(2026, 11, 30)
    whole = spice_rs.extract(model, data, tmp_path / "t", tokenizer=tokenizer, dim=8)
    np.testing.assert_allclose(rows_of(grown), rows_of(whole), rtol=1e-2)
    on(2026, 12, 1)
    other = spice_rs.extract(model, data, tmp_path / "u", tokenizer=tokenizer, dim=8)
    assert not np.allclose(rows_of(other), rows_of(whole), rtol=1e-1)
    undated = spice_rs.extract(model, data, tmp_path / "v", tokenizer=make_tokenizer(CHATML), dim=8)
    assert "template_date" not in undated.provenance
    assert spice_rs.doctor(model, data, tokenizer=tokenizer, samples=2).passed


def test_a_run_that_goes_on_another_day_keeps_its_date(tmp_path, model, on):
    data = [{"prompt": word, "completion": word} for word in ("hi", "ho", "hey", "hm")]
    options = dict(
        tokenizer=make_tokenizer(DATED), pool_size=2, select_per_window=1, target_modules=["q_proj"], dim=8
    )
    on(2026, 11, 30)
    model.save_pretrained(tmp_path / "model")  # a run trains what it is given
    first = spice_rs.run_schedule(str(tmp_path / "model"), data, tmp_path / "run", **options)
    assert first.settings["template_date"] == "2026-11-30"
    on(2026, 12, 1)
    again = spice_rs.run_schedule(str(tmp_path / "model"), data, tmp_path / "run", **options)
    assert again.settings["template_date"] == "2026-11-30"


def test_tokenizers_with_several_templates_and_without_offsets(monkeypatch):
    tokenizer = make_tokenizer({"default": CHATML, "tool_use": TOOLS})
    for tools in (None, [TOOL]):
        example = tokenise(as_records(CALLING if tools else DIALOGUE, tools), tokenizer)[0]
        assert ("weather" in tokenizer.decode(example.input_ids)) == bool(tools)
    with pytest.raises(InvalidInputError, match="leaves tool calls out"):
        tokenise(as_records(CALLING), tokenizer)  # no tools are described, so that the other template is used
    for template in (MARKED, THINKING):
        tokenizer = make_tokenizer(template)
        fast = tokenise(as_records(DIALOGUE), tokenizer)[0]
        with monkeypatch.context() as patched:
            patched.setattr(type(tokenizer), "is_fast", property(lambda self: False))
            slow = tokenise(as_records(DIALOGUE), tokenizer)[0]
        np.testing.assert_array_equal(slow.labels, fast.labels)


def test_letters_for_private_use_in_the_data_are_words():
    for content in ("\U000f0000 hi", "a\U0010ffff"):
        messages = turns(("user", content), ("assistant", f"{content}!"))
        with pytest.raises(InvalidInputError, match="several times"):
            learned(CHATML, messages)
        assert learned(CHATML, turns(("user", content), ("assistant", "ho"))) == ["ho<|im_end|>"]


def test_a_record_sets_variables_of_the_template():
    switched = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{{ '!' if loud and m.role == 'user' else '' }}"
    )

    def record(**options):
        return [
            Record(
                0, "data[0]", (Message("user", "hi"), Message("assistant", "ho")), template_options=options
            )
        ]

    assert "hi!<|im_end|>" in text_of(switched, record(loud=True))
    assert "hi<|im_end|>" in text_of(switched, record(loud=None))
    for options in ({"quiet": True}, {"tokenize": True}, {"add_generation_prompt": True}):
        with pytest.raises(InvalidInputError, match=rf"data\[0\].*sets '{next(iter(options))}'"):
            learned(switched, record(**options))
    with pytest.raises(InvalidInputError, match=r"sets 'loud'.*no chat template"):
        learned(None, record(loud=True))


# ------------------------------------------------------------------------------------------- templates from files


def test_a_template_from_a_file_is_used(tmp_path, model):
    file = tmp_path / "chat.jinja"
    file.write_text(HEADERS, encoding="utf-8")
    given = read_template(file)
    assert learned(CHATML, DIALOGUE, chat_template=given) == ["ho<|eot|>", "hey<|eot|>"]
    assert learned(None, DIALOGUE, chat_template=given) == ["ho<|eot|>", "hey<|eot|>"]
    own, other = make_tokenizer(CHATML), make_tokenizer(HEADERS)
    assert tokenizer_fingerprint(own, given) == tokenizer_fingerprint(other) != tokenizer_fingerprint(own)
    data = [{"messages": DIALOGUE}, {"messages": DIALOGUE[:2]}]
    store = spice_rs.extract(model, data, tmp_path / "s", tokenizer=own, dim=8, chat_template=file)
    assert store.provenance["template"] == "chat"
    with pytest.raises(StoreMismatchError, match="tokenizer"):
        spice_rs.extract(model, data, tmp_path / "s", tokenizer=own, dim=8)
    assert spice_rs.doctor(model, data, tokenizer=own, samples=2, chat_template=str(file)).passed
    with pytest.warns(SpiceWarning, match="chat_template does nothing"):
        spice_rs.extract(model, [{"text": "hi"}], tmp_path / "t", tokenizer=own, dim=8, chat_template=file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{% for m in messages %}{{ m.content }}", "line 1: .*endfor"),
        (b"Hello {{ name }}", "never uses 'messages'"),
        (json.dumps({"chat_template": CHATML}).encode(), "found JSON"),
    ],
)
def test_a_file_that_is_no_template_is_named(tmp_path, content, says):
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=rf"chat_template.*chat.jinja.*{says}"):
        read_template(file)
    with pytest.raises(InvalidInputError, match="found a folder, expected a file with a Jinja template"):
        read_template(tmp_path)
    with pytest.raises(InvalidInputError, match="chat_template: found int"):
        read_template(7)


def test_the_command_takes_a_template(tmp_path, model, capsys):
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(CHATML).save_pretrained(tmp_path / "model")
    data = tmp_path / "pool.jsonl"
    data.write_text(json.dumps({"prompt": "hi ", "completion": "ho"}) + "\n", encoding="utf-8")
    options = ["--model", tmp_path / "model", "--data", data, "--dim", 8, "--device", "cpu"]
    assert command("extract", *options, "--out", tmp_path / "s", "--chat-template", "none") == 0
    assert spice_rs.GradientStore(tmp_path / "s").provenance["template"] == "joined"
    capsys.readouterr()
    assert command("extract", *options, "--out", tmp_path / "t", "--chat-template", tmp_path / "no") == 2
    assert "--chat-template" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "t")


def test_prompt_and_response_can_be_joined_as_they_stand():
    pair = {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "completion": "ho"}
    tokenizer = make_tokenizer(CHATML, bos="<s>")
    example = tokenise(load_records([pair]), tokenizer, chat_template="none")[0]
    assert tokenizer.decode(example.input_ids) == "<s>" + pair["prompt"] + "ho<|im_end|>"
    assert tokenizer.decode(example.input_ids[example.labels != -100]) == "ho<|im_end|>"
    begun = {"prompt": "<s>" + pair["prompt"], "completion": "ho<|im_end|>"}
    again = tokenise(load_records([begun]), tokenizer, chat_template="none")
    np.testing.assert_array_equal(again[0].input_ids, example.input_ids)  # neither token twice
    assert again.template == "joined"
    for messages in (DIALOGUE, [*turns(("system", "s")), *DIALOGUE[:2]]):
        with pytest.raises(InvalidInputError, match=r"data\[0\].*prompt and a response alone"):
            tokenise(as_records(messages), tokenizer, chat_template="none")


# ------------------------------------------------------------------------------------- text that was rendered before


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|eot|>", ""])
def test_text_that_was_rendered_before_gets_no_second_tokens(end):
    tokenizer = make_tokenizer(CHATML, bos="<s>")
    text = f"<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho{end}"
    example = tokenise(load_records([{"text": text}]), tokenizer)[0]
    assert tokenizer.decode(example.input_ids) == (text if end else text + "<|im_end|>")
    noted = tokenise(load_records([{"text": text}, {"text": "hi<|im_end|>"}]), tokenizer).notes
    assert len(noted) == 1
    assert re.match(
        r"1 text holds markers of the tokenizer's chat template.*data\[0\]: '<\|im_start\|>'", noted[0]
    )
    bare = tokenise(load_records([{"text": "hi"}]), tokenizer)[0]
    assert tokenizer.decode(bare.input_ids) == "<s>hi<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (
            turns(("user", "<|im_start|>user\nhi<|im_end|>"), ("assistant", "ho")),
            r"turn 0 \(user\): holds '<\|im_start\|>'",
        ),
        (turns(("user", "hi"), ("assistant", "ho<|im_end|>")), r"turn 1 \(assistant\): holds '<\|im_end\|>'"),
        (turns(("user", "<s>hi"), ("assistant", "ho")), r"turn 0 \(user\): holds '<s>'"),
    ],
)
def test_turns_that_were_rendered_before_are_named(messages, says):
    with pytest.raises(InvalidInputError, match=rf"data\[0\]: {says}.*'none'"):
        learned(CHATML, messages, bos="<s>")


def test_markers_that_are_no_special_tokens_are_named_too():
    messages = turns(("user", "[I] hi [/I]"), ("assistant", "ho"))
    assert learned(INST, messages) == [" ho </s>"]  # too short for a marker
    with pytest.raises(InvalidInputError, match=r"turn 0 \(user\): holds '\[/?INST\]'"):
        learned(
            INST.replace("[I]", "[INST]").replace("[/I]", "[/INST]"),
            turns(("user", "[INST] hi [/INST]"), ("assistant", "ho")),
        )
    with pytest.raises(InvalidInputError, match=r"turn 0 \(user\): holds '### Response:'"):
        learned(None, turns(("user", "### Instruction:\nhi\n\n### Response:\n"), ("assistant", "ho")))


def test_special_tokens_that_the_template_does_not_write_are_words():
    messages = turns(("user", "What is <|eot|>?"), ("assistant", "<|tool|> or <|call|>"))
    assert learned(CHATML, messages) == ["<|tool|> or <|call|><|im_end|>"]


# ------------------------------------------------------------------------------------------------- special tokens


def test_ends_of_turns_without_a_name_are_end_tokens(model):
    tokenizer = make_tokenizer(HEADERS, eos="</s>", named=False)
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert end not in tokenizer.all_special_ids
    assert {end, tokenizer.eos_token_id} <= SpecialTokens(tokenizer).ids
    data = [{"messages": DIALOGUE}, {"messages": DIALOGUE[:2]}]
    found = spice_rs.doctor(model, data, tokenizer=tokenizer, samples=2)
    assert found.passed, str(found)
    # White space behind such a token is not learned either.
    tokenizer.chat_template = CHATML
    example = tokenise(load_records(data), tokenizer)[1]
    assert tokenizer.decode(example.input_ids[example.labels != -100]) == "ho<|im_end|>"


@pytest.mark.parametrize("template", [THINKING, CHANNELS, ENDED, TOOLS])
def test_the_doctor_passes_what_is_followed(template, model):
    data = [{"messages": [*DIALOGUE, *DIALOGUE]}, {"messages": DIALOGUE[:2]}]
    found = spice_rs.doctor(model, data, tokenizer=make_tokenizer(template, eos="<|endoftext|>"), samples=2)
    assert found.passed, str(found)


def test_shared_prefixes_end_inside_no_special_token():
    special = SpecialTokens(make_tokenizer(CHATML))
    assert special.shared("a<|end|>b", "a<|endoftext|>") == 1
    assert special.shared("a<|end|>b", "a<|end|>c") == 8
    assert special.shared("ab", "abc") == shared_prefix("ab", "abc") == 2
    assert special.shared("<|end", "<|end|>") == 0
