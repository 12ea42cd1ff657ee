"""The model and what it is to learn: records read and tokenised, their tokens kept on disk.

Records go through the process one after the other: they are checked and put into a file without a name, and when the
model is there they are taken from it again, tokenised and put into another one, which is mapped. What stays in memory of
a record is some fifty bytes, whatever its length.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spice_rs.data.dataset import Record, Records, Tokeniser, load_records
from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.reading import identity, loaded, size_of
from spice_rs.data.record_file import TOKENS, TURNS, ByRow, RecordWriter, StoredRecords
from spice_rs.data.records import fingerprint_and_hashes
from spice_rs.data.splits import parted
from spice_rs.data.templates import read_template
from spice_rs.data.token_file import TokenFile, TokenWriter
from spice_rs.data.tokens import unmasked_padding
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.batching import Samples
from spice_rs.extraction.loading import Proxy, device_of
from spice_rs.extraction.own_data import OwnTable, recognised
from spice_rs.extraction.proxy import limits, load_model
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.token_cache import TokenCache, scratch_folder
from spice_rs.nouns import counted
from spice_rs.progress import Bar, Progress, bar

_SHOWN_EVERY = 256  # records
_PACKAGES = ("spice-rs", "transformers", "tokenizers", "datasets", "numpy")
"""What tokens may depend on besides data, settings and tokenizer."""


@dataclass(frozen=True)
class RecordHashes:
    """By what a store recognises records.

    Attributes:
        rows: (n,) int64, dataset rows, ascending.
        hashes: (n,) int64, the hash of each.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.int64]

    def __call__(self, row: int) -> int:
        """The hash of a dataset row's record.

        Raises:
            KeyError: There is no such row, or it cannot be used.
        """
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            raise KeyError(row)
        return int(self.hashes[place])


@dataclass(frozen=True)
class Inputs:
    """The model and what it is to learn, before anything is tracked.

    Attributes:
        network: The model, without a fresh adapter.
        name: What it is recorded under.
        device: Where it is to be used.
        samples: All that can be used, by index.
        rows: Records of the data, those that cannot be used included.
        left_out: Those.
        truncated: Samples cut to max_length.
        source: The data's name for people.
        records: By index, where they were kept.
        tokenizer: Of text, else None.
        provenance: What a store records of the data.
        hashed: Dataset row → hash of its record, by which a store recognises it.
        notes: What of the data needs a second look, in sentences.
        described: Columns that describe the records and are not read.
        scratch: Bytes of the file with the tokens, and of the one with the records before they were tokenised; 0 for the
            user's own data.
    """

    network: torch.nn.Module
    name: str
    device: torch.device
    samples: Samples
    rows: int
    provenance: dict[str, Any]
    hashed: RecordHashes
    left_out: Sequence[LeftOut] = ()
    truncated: int = 0
    source: str = "data"
    records: Mapping[int, Record] = field(default_factory=dict)
    tokenizer: Any = None
    notes: Sequence[str] = ()
    described: Sequence[str] = ()
    scratch: tuple[int, int] = (0, 0)


def read_own(model: Any, data: Any, settings: Settings) -> Inputs:
    """The model, and samples of the user's own."""
    place = device_of(model, settings.device)
    network, name = load_model(
        model, gguf_file=settings.gguf_file, device=place, trust_remote_code=settings.trust_remote_code
    )
    known = recognised(data)
    dataset: dict[str, Any] = {"fingerprint": known.fingerprint, "rows": len(data), "own": True}
    if known.fields is not None:
        dataset["fields"] = known.fields
    return Inputs(
        network,
        name,
        place,
        _all(OwnTable(len(data)), settings.limit),
        len(data),
        {"dataset": dataset},
        RecordHashes(np.arange(len(data)), known.hashes),
    )


def read_text(
    model: Any,
    data: Any,
    settings: Settings,
    *,
    template_date: datetime.date | None = None,
    out: str | os.PathLike[str] | None = None,
    cache: TokenCache | None = None,
    keep_records: bool = False,
    progress: Progress = False,
) -> Inputs:
    """Records first, then the model: what is wrong with the data is said before the model is loaded.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        settings: The other arguments.
        template_date: What chat templates are told that ask for the date: that of the rows that are there already
            (`templates.recorded_date`). Default: today.
        out: The store near which files without a name may lie.
        cache: Where tokens are shared with other processes, or with the next run; None for nowhere.
        keep_records: Keep the records too.
        progress: Whether to show how far it is.

    Raises:
        InvalidInputError: The data, the model or an argument cannot be used.
    """
    chat_template = read_template(settings.chat_template)
    folder = scratch_folder(out, settings.cache_dir)
    split = settings.split or (parted(data)[1] if isinstance(data, str | os.PathLike) else None)
    reader = _Reader(
        Proxy(model, settings, chat_template),
        loaded(data),
        split,
        settings,
        template_date or datetime.date.today(),
        folder,
        progress,
    )
    tokens = reader.made() if cache is None else cache.shared(reader.key, reader.made, reader.is_mine)
    return reader.inputs(tokens, template_date, keep_records)


class _Reader:
    """Makes the file with the tokens of data, or says whether one that is there is right."""

    def __init__(
        self,
        proxy: Proxy,
        data: Any,
        split: str | None,
        settings: Settings,
        today: datetime.date,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self._proxy = proxy
        self._data = data
        self._split = split
        self._settings = settings
        self._today = today
        self._folder = folder
        self._progress = progress
        self._records: StoredRecords | None = None

    def key(self) -> str | None:
        """What tokens of these data and settings are known by, but for the tokenizer; None if the data may be any."""
        known, settings = identity(self._data), self._settings
        if known is None:
            return None
        read = (settings.columns and dict(settings.columns), settings.ignore_columns, settings.preference)
        used = (settings.max_length, settings.completion_only, settings.skip_bad, settings.limit)
        content = [known, read, used, self._proxy.chat_template, [_version(each) for each in _PACKAGES]]
        return hashlib.sha256(json.dumps(content, default=list).encode()).hexdigest()

    def is_mine(self, tokens: TokenFile) -> bool:
        """Whether tokens with this key were made by the same tokenizer, on the same day where that matters."""
        about = tokens.about
        needed, tokens_too = about["words"], about["has_tokens"]
        return bool(
            about["tokenizer"] == self._proxy.fingerprint(needed)
            and about["padding"] == (_listed(self._proxy.padding(needed)) if tokens_too else None)
            and about["template_date"] in (None, self._today.isoformat())
        )

    def made(self, path: Path | None = None) -> TokenFile:
        """Reads the data and tokenises them, into a file of that name, or without one."""
        key = self.key()
        records = self._read()
        _ = self._proxy.network  # whatever is wrong with it is said before the long work
        stored = records.items
        assert isinstance(stored, StoredRecords)
        words = bool((stored.kinds != TOKENS).any())
        tokenizer = self._proxy.tokenizer(words)
        chosen = stored
        if self._settings.limit is not None:
            chosen = stored[: int(np.searchsorted(stored.rows, self._settings.limit))]
        has_tokens = bool((chosen.kinds == TOKENS).any())
        padding = self._proxy.padding(words) if has_tokens else None
        padded = [] if padding is None else list(_padded(chosen, *padding))
        if padded and not self._settings.skip_bad:
            raise InvalidInputError(f"{padded[0]}; {SKIP_REMEDY}")
        chosen = chosen.take(~np.isin(chosen.rows, [each.row for each in padded]))
        tokeniser = Tokeniser(
            tokenizer,
            max_length=self._settings.max_length,
            completion_only=self._settings.completion_only,
            skip_bad=self._settings.skip_bad,
            chat_template=self._proxy.chat_template,
            today=self._today,
        )
        writer = TokenWriter(self._folder, path)
        with closing(bar(self._progress, total=len(chosen), what="tokenise", unit="records")) as shown:
            for example in tokeniser.examples(_counted(chosen, shown)):
                writer.append(example)
        talks = bool((chosen.kinds == TURNS).any())
        left_out = (*records.bad, *padded, *tokeniser.skipped)
        if not len(writer):
            self._warn_of_template(talks)
            raise InvalidInputError(
                f"{records.source}: nothing to learn among the first"
                f" {counted(self._settings.limit or records.rows, 'row')}; "
                f"the first reason: {[*left_out, 'no record'][0]}"
            )
        fingerprint, hashes = fingerprint_and_hashes(records)
        self._records = stored
        date = tokeniser.template_date
        about = {
            "key": key,
            "rows": records.rows,
            "source": records.source,
            "described": records.described,
            "fingerprint": fingerprint,
            "left_out": [[each.row, each.place, each.reason, each.detail] for each in left_out],
            "nbytes": stored.nbytes,
            "words": words,
            "has_tokens": has_tokens,
            "talks": talks,
            "tokenizer": self._proxy.fingerprint(words),
            "padding": _listed(padding),
            "truncated": tokeniser.truncated,
            "template": tokeniser.template,
            "template_date": None if date is None else date.isoformat(),
            "notes": tokeniser.notes,
        }
        return writer.finish(stored.rows, hashes, about)

    def inputs(self, tokens: TokenFile, template_date: datetime.date | None, keep_records: bool) -> Inputs:
        """What is to be learned, by the tokens made or found."""
        about, proxy = tokens.about, self._proxy
        network, name = proxy.network
        self._warn_of_template(about["talks"])
        _check_limits(network, tokens)
        date = about["template_date"] if template_date is None else template_date.isoformat()
        provenance = {
            "tokenizer": about["tokenizer"],
            "template": about["template"],
            "completion_only": self._settings.completion_only,
            "max_length": self._settings.max_length,
            "dataset": {
                "fingerprint": about["fingerprint"],
                "rows": about["rows"],
                **({} if self._split is None else {"split": self._split}),
            },
            **({} if date is None else {"template_date": date}),
        }
        records = self._records if keep_records else None
        return Inputs(
            network,
            name,
            proxy.device,
            _all(tokens),
            about["rows"],
            provenance,
            RecordHashes(tokens.record_rows, tokens.record_hashes),
            left_out=[LeftOut(*each) for each in about["left_out"]],
            truncated=about["truncated"],
            source=about["source"],
            records={} if records is None else ByRow(records),
            tokenizer=proxy.tokenizer(about["words"]),
            notes=about["notes"],
            described=about["described"],
            scratch=(tokens.nbytes, about["nbytes"]),
        )

    def _warn_of_template(self, talks: bool) -> None:
        if self._proxy.chat_template is not None and Rank.current().first and not talks:
            warnings.warn(
                "chat_template does nothing: there are no conversations, prompts and responses among the records; leave it"
                " out",
                SpiceWarning,
                stacklevel=6,
            )

    def _read(self) -> Records:
        total = size_of(self._data) or 0
        with closing(bar(self._progress, total=total, what="read", unit="records")) as shown:
            return load_records(
                self._data,
                skip_bad=self._settings.skip_bad,
                columns=self._settings.columns,
                ignore_columns=self._settings.ignore_columns,
                preference=self._settings.preference,
                keeper=RecordWriter(self._folder),
                count=shown.update,
            )


def _counted(records: StoredRecords, shown: Bar) -> Iterator[Record]:
    """The records, while the bar goes on."""
    for start in range(0, len(records), _SHOWN_EVERY):
        part = records[start : start + _SHOWN_EVERY]
        yield from part
        shown.update(len(part))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _listed(padding: tuple[int, bool] | None) -> list[Any] | None:
    """As JSON has it."""
    return None if padding is None else list(padding)


def _all(table: TokenFile | OwnTable, limit: int | None = None) -> Samples:
    return Samples(table, np.arange(len(table.rows))[:limit])


def _padded(records: StoredRecords, pad: int, may_end: bool) -> Iterator[LeftOut]:
    """Records of tokens whose padding would be learned, or seen; only here is it known which token pads.

    One pad token at the end may be an end token of the template's; where others have more of them, it is padding.
    """

    def wrong(place: int, allowed: int) -> str | None:
        tokens = records[place].tokens
        return None if tokens is None else unmasked_padding(tokens, pad, allowed)

    places = np.flatnonzero((records.edges == pad).any(axis=1)).tolist()  # padding is at the ends
    padded = [place for place in places if wrong(place, 1)]
    for place in padded if may_end or not padded else places:
        reason = wrong(place, 1 if may_end else 0)
        if reason is not None:
            record = records[place]
            yield LeftOut(record.index, record.place, "padding", reason)


def _check_limits(network: torch.nn.Module, tokens: TokenFile) -> None:
    """Says in words what would be an index out of range in the middle of the run (on a GPU, a crash)."""
    vocabulary, positions = limits(network)
    small = vocabulary is None or tokens.largest < vocabulary
    if small and (positions is None or tokens.longest <= positions):
        return
    for example in tokens:
        largest = int(max(example.input_ids.max(), example.labels.max()))
        if vocabulary is not None and largest >= vocabulary:
            raise InvalidInputError(
                f"row {example.index}: found token id {largest}, expected ids below the model's {vocabulary}; "
                "use the tokenizer that belongs to the model"
            )
        if positions is not None and len(example.input_ids) > positions:
            raise InvalidInputError(
                f"row {example.index}: found {counted(len(example.input_ids), 'token')}, expected at most the model's "
                f"{positions} positions; set max_length={positions} or lower"
            )
