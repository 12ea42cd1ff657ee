"""Records → tokenised examples with stable ids: what `records.py`, `tokenising.py` and `examples.py` are for.

This file does not import torch; tokenizers are passed in.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from spice_rs.data.examples import Example, Examples
from spice_rs.data.plain import PLAIN_TEMPLATE
from spice_rs.data.records import Record, Records, dataset_fingerprint, load_records
from spice_rs.data.tokenising import Tokeniser
from spice_rs.data.tokens import IGNORED

__all__ = [
    "IGNORED",
    "PLAIN_TEMPLATE",
    "Example",
    "Examples",
    "Record",
    "Records",
    "Tokeniser",
    "dataset_fingerprint",
    "load_records",
    "tokenise",
    "tokenizer_fingerprint",
]


def tokenise(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    completion_only: bool = True,
    skip_bad: bool = False,
    chat_template: str | None = None,
    today: datetime.date | None = None,
) -> Examples:
    """Tokenises records and marks what is learned.

    Args:
        records: From `load_records`, or a slice of them.
        tokenizer: A `transformers` tokenizer; None if every record is tokenised already.
        max_length: Tokens kept per sample, from the start.
        completion_only: Learn the assistant's words alone; else every token but the first, and but assistant turns that
            the data mark as context.
        skip_bad: Leave out (and count) records without a learned token or that the template refuses.
        chat_template: Text of the template to use in place of the tokenizer's own, or "none": prompt and response are
            joined as they stand; see `templates.read_template`.
        today: What templates are told that ask for the date. Default: the day on which this is called.

    Raises:
        InvalidInputError: A sample has no learned token within `max_length`, the template cannot be followed,
            or there is no tokenizer for text.
    """
    tokeniser = Tokeniser(
        tokenizer,
        max_length=max_length,
        completion_only=completion_only,
        skip_bad=skip_bad,
        chat_template=chat_template,
        today=today,
    )
    items = tuple(tokeniser.examples(records))
    return Examples(
        items,
        tokeniser.truncated,
        tuple(tokeniser.skipped),
        tokeniser.template,
        tokeniser.template_date,
        tuple(tokeniser.notes),
    )


def tokenizer_fingerprint(tokenizer: Any, chat_template: str | None = None) -> str:
    """Hash of all that decides token ids and masks: vocabulary, merges, special tokens and chat template.

    Args:
        tokenizer: The tokenizer.
        chat_template: What is used in place of its template, as for `tokenise`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        model = json.loads(backend.to_str())
        # Padding and truncation are the state of the last call, not the tokenizer.
        model.pop("padding", None)
        model.pop("truncation", None)
    else:
        model = sorted(tokenizer.get_vocab().items())
    content = {
        "model": model,
        "special": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": getattr(tokenizer, "chat_template", None) if chat_template is None else chat_template,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
