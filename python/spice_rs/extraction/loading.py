"""The model that is asked for and the tokenizer beside it, loaded when they are needed."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from spice_rs.data.dataset import tokenizer_fingerprint
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.proxy import load_model, load_tokenizer
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import Settings
from spice_rs.signs import step


class Proxy:
    """The model and its tokenizer.

    Args:
        model: As for `extract`.
        settings: The other arguments.
        chat_template: The text of the template given, as `read_template` has it.

    Attributes:
        chat_template: What is used in place of the tokenizer's own.
    """

    def __init__(self, model: Any, settings: Settings, chat_template: str | None) -> None:
        self._model = model
        self._settings = settings
        self._tokenizers: dict[bool, Any] = {}
        self.chat_template = chat_template

    @functools.cached_property
    def device(self) -> torch.device:
        """Where it is to be used."""
        return device_of(self._model, self._settings.device)

    @functools.cached_property
    def network(self) -> tuple[torch.nn.Module, str]:
        """The model, and what it is recorded under."""
        step("loading the model")
        return load_model(
            self._model,
            gguf_file=self._settings.gguf_file,
            device=self.device,
            trust_remote_code=self._settings.trust_remote_code,
        )

    def tokenizer(self, needed: bool) -> Any:
        """The one given, or where one is needed that of the model; else None."""
        if needed not in self._tokenizers:
            self._tokenizers[needed] = self._tokenizer(needed)
        return self._tokenizers[needed]

    def fingerprint(self, needed: bool) -> str | None:
        """Of the tokenizer."""
        tokenizer = self.tokenizer(needed)
        return None if tokenizer is None else tokenizer_fingerprint(tokenizer, self.chat_template)

    def padding(self, needed: bool) -> tuple[int, bool] | None:
        """The pad token of records that are tokenised already, and whether it may end a sample; None if it is unknown.

        The tokenizer that made the tokens, most likely, knows: the one beside the model.
        """
        tokenizer = self.tokenizer(needed) or self._beside
        sources = (tokenizer, getattr(self.network[0], "config", None))
        pads, ends = (
            [value for source in sources if (value := getattr(source, name, None)) is not None]
            for name in ("pad_token_id", "eos_token_id")
        )
        if not pads:
            return None
        end = (ends or [None])[0]
        return pads[0], pads[0] in (end if isinstance(end, list | tuple) else [end])

    @functools.cached_property
    def _beside(self) -> Any:
        try:
            return self._loaded(self._model, self._settings.gguf_file)
        except InvalidInputError:
            return None

    def _tokenizer(self, needed: bool) -> Any:
        given = self._settings.tokenizer
        if isinstance(given, str | os.PathLike):
            return self._loaded(given, None)
        if given is None and needed:
            return self._loaded(self._model, self._settings.gguf_file)
        return given

    def _loaded(self, source: Any, gguf_file: str | None) -> Any:
        return load_tokenizer(source, gguf_file=gguf_file, trust_remote_code=self._settings.trust_remote_code)


def device_of(model: Any, device: str | torch.device | None) -> torch.device:
    """Where a model is to be used: where the caller says, where it is, or on the GPU if there is one.

    Raises:
        InvalidInputError: There is no such device, or the model has no weights.
    """
    if device is None and isinstance(model, torch.nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise InvalidInputError(
                "model: found one without parameters, expected a model to take gradients of. Give another."
            )
        if parameter.device.type == "meta":
            raise InvalidInputError("model is on the meta device, and has no weights; load them first")
        return parameter.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = Rank.current()
    if str(device) == "cuda" and rank.count > 1:
        device = f"cuda:{rank.local}"  # each process of a machine its own
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # unknown, or not on this machine
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"device is {str(device)!r}: {reason}; use one that this machine has"
        ) from None
    return torch.device(device)
