"""Many processes: each computes its own samples and writes its own shards; none waits for another.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK, and nothing else is needed. Samples are dealt by
falling length, there and back (0, 1, 2, 2, 1, 0, …), so that all ranks get as many tokens. The deal goes by the data
alone and not by what the store has already: ranks that start at different times agree on it. Whatever is missing when a
rank dies is dealt anew in the next run, among as many ranks as that has.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.batching import Sample, chosen, longest_first

_HERE = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Rank:
    """This process among those that share the work.

    Attributes:
        number: From 0.
        count: Of all processes.
        local: Its number on this machine, which is that of its GPU.
        run: What all of them are known by, and no processes of another run; None where there is one alone. Where the
            environment does not say where they meet, those of another run of as many have the same.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    run: str | None = None

    @staticmethod
    def current() -> Rank:
        """As the environment says; the only one if it says nothing.

        Raises:
            InvalidInputError: The variables contradict each other.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return Rank()
        texts = [os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ.get("LOCAL_RANK", "0")]
        if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
            raise InvalidInputError(
                f"the environment: found RANK={texts[0]}, WORLD_SIZE={texts[1]} and LOCAL_RANK={texts[2]}, expected 0 ≤ "
                "RANK < WORLD_SIZE; start with torchrun, or unset them"
            )
        number, count, local = map(int, texts)
        return Rank(number, count, local, _run(count) if count > 1 else None)

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.number == 0

    def slice(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples of this rank, longest first."""
        period = 2 * self.count
        turn = np.arange(len(samples)) % period
        mine = (turn == self.number) | (turn == period - 1 - self.number)
        return chosen(longest_first(samples), mine)


def _run(count: int) -> str:
    """Where the processes of this run meet, as `torchrun` says; how many they are where somebody starts each."""
    found = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    if not any(found):
        return f"{count} by hand"
    here = socket.gethostname() if found[0] in _HERE else ""  # by which every machine calls itself
    return " ".join([*found, here]).replace("\n", " ")
