"""Conversations without a chat template: a plain one for tokenizers that have none, and prompts joined to responses."""

from __future__ import annotations

from spice_rs.data.records import Record
from spice_rs.data.spans import Span
from spice_rs.data.templates import REMEDY, TemplateFault

PLAIN_TEMPLATE = {
    "system": "{content}\n\n",
    "user": "### Instruction:\n{content}\n\n### Response:\n",
    "tool": "### Result:\n{content}\n\n### Response:\n",
    "assistant": "{content}{eos}",
}
"""Text of each turn for tokenizers without a chat template; two line ends follow an assistant's turn."""


def plain(record: Record, eos: str) -> tuple[str, list[Span]]:
    """The whole text by `PLAIN_TEMPLATE`, and the assistant turns in it.

    Raises:
        TemplateFault: The record says something that the template does not show.
    """
    _check_shown(record, "the tokenizer has no chat template")
    text, spans, previous = "", [], ""
    for number, message in enumerate(record.messages):
        if message.role not in PLAIN_TEMPLATE:
            raise TemplateFault(
                f"turn {number}: role {message.role!r}, expected one of {', '.join(PLAIN_TEMPLATE)}, since the tokenizer "
                f"has no chat template; {REMEDY}"
            )
        if previous == "assistant":
            text += "\n\n"
        start = len(text)
        text += PLAIN_TEMPLATE[message.role].format(content=message.content, eos=eos)
        if message.role == "assistant":
            spans.append(Span(number, start, len(text)))
        previous = message.role
    return text, spans


def joined(record: Record, eos: str) -> tuple[str, list[Span]]:
    """Prompt, response and an end token, as they stand.

    Raises:
        TemplateFault: It is no prompt and response.
    """
    _check_shown(record, "no chat template is used (chat_template='none')")
    roles = [message.role for message in record.messages]
    if roles != ["user", "assistant"]:
        raise TemplateFault(
            f"found turns of {', '.join(roles)}, expected a prompt and a response alone, which chat_template='none' "
            "joins as they stand; use a chat template for conversations"
        )
    prompt, response = (message.content for message in record.messages)
    text = prompt + (response if response.endswith(eos) else response + eos)
    return text, [Span(1, len(prompt), len(text))]


def _check_shown(record: Record, why: str) -> None:
    """Refuses what goes beyond the contents."""
    reason = f"{why}; {REMEDY}"
    for number, message in enumerate(record.messages):
        turn = f"turn {number} ({message.role})"
        if message.calls:
            raise TemplateFault(f"{turn}: found calls of tools, and {reason}")
        context = message.role == "assistant" and not message.learned
        for name, value in message.more.items():
            if name == "name":
                meant = message.role != "tool" and value != message.role
            else:
                meant = name != "tool_call_id" and not context
            if value and meant:
                raise TemplateFault(f"{turn}: found {name!r}, and {reason}")
    if any(
        isinstance(tool, dict) and (tool.get("name") or tool.get("function")) for tool in record.tools or ()
    ):
        raise TemplateFault(f"found descriptions of tools, and {reason}")
    for name, value in record.template_options.items():
        if value is not None:
            raise TemplateFault(f"the record sets {name!r} for the chat template, and {reason}")
