"""Tokens that processes of one machine share: whoever comes first reads the data, and the others map what it wrote.

The file lies beside the store, `OUT.tokens-HOST`, while the extraction goes on; a run that was stopped finds it again.
Nobody relies on another process: the one that reads the data holds a lock that ends with it, and where it dies or fails
another one takes its place. A file that was found is used only if it is of the same data, settings and tokenizer, and
if every byte of it is what was written; else it is made anew.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from spice_rs.data.token_file import TokenFile
from spice_rs.errors import InvalidInputError
from spice_rs.locks import HeldError, hold, let_go
from spice_rs.paths import local
from spice_rs.progress import Bar, Progress, bar

_LOOK_AGAIN = 0.2  # seconds


@dataclass(frozen=True)
class TokenCache:
    """Where the tokens of a store's data lie.

    Attributes:
        path: The file of this machine.
        progress: Whether to show that another process is waited for.
    """

    path: Path
    progress: Progress = False

    @staticmethod
    def of(
        out: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None, progress: Progress = False
    ) -> TokenCache | None:
        """Of a store, in the folder that `scratch_folder` tells; None where that is one of temporary files.

        Raises:
            InvalidInputError: There is no such folder.
        """
        store = Path(out).expanduser().absolute()
        folder = scratch_folder(out, cache_dir)
        if folder is None:
            return None
        beside = folder == store.parent
        name = store.name if beside else f"{store.name}-{hashlib.sha256(str(store).encode()).hexdigest()[:8]}"
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())[:64]
        return TokenCache(folder / f"{name}.tokens-{host}", progress)

    def shared(
        self,
        key: Callable[[], str | None],
        build: Callable[[Path | None], TokenFile],
        is_mine: Callable[[TokenFile], bool],
    ) -> TokenFile:
        """The tokens that are there, or those that are made now.

        Args:
            key: What they are known by: data and settings, as they are when it is called; None if that is not known.
            build: Makes them, in a file of that name, or in one without a name. Their `about` has the key under "key".
            is_mine: What else must be right of tokens that are there.

        Raises:
            InvalidInputError: They cannot be made.
        """
        wanted = key()
        if wanted is None:
            return build(None)
        refused = None
        while True:
            with self._locked() as is_locked:
                if not is_locked:
                    return build(None)
                found = TokenFile.open(self.path)
                if found is None or found.about.get("key") != wanted or found.digest == refused:
                    return self._built(build, lambda: key() == wanted)
            if found.is_whole() and is_mine(found):
                return found
            refused = found.digest

    def remove(self) -> None:
        """Remove the file, those of other machines, and what processes that were killed have left."""
        stem = self.path.name[: self.path.name.rindex(".tokens-")]
        for found in self.path.parent.glob(f"{glob.escape(stem)}.tokens-*"):
            if found.suffix != ".lock":
                with suppress(OSError):
                    found.unlink()

    def _built(self, build: Callable[[Path], TokenFile], is_still: Callable[[], bool]) -> TokenFile:
        part = self.path.with_name(f"{self.path.name}.part")
        part.unlink(missing_ok=True)  # of a process that was killed
        try:
            found = build(part)
            if is_still():  # data that changed meanwhile are nobody else's
                os.replace(part, self.path)
        except FileNotFoundError:  # removed, since the store is whole
            pass
        finally:
            part.unlink(missing_ok=True)
        return found

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Inside, no other process of this machine makes the tokens; False where there are no locks."""
        path = self.path.with_name(f"{self.path.name}.lock")
        descriptor = self._lock(path)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                let_go(path, descriptor)

    def _lock(self, path: Path) -> int | None:
        with closing(_Waiting(self.progress)) as waiting:
            while True:
                try:
                    return hold(path, f"process {os.getpid()}")
                except OSError:  # a folder that cannot be written to, which is said where the tokens are
                    return None
                except HeldError as error:
                    waiting.on(str(error))
                    time.sleep(_LOOK_AGAIN)


def scratch_folder(
    out: str | os.PathLike[str] | None, cache_dir: str | os.PathLike[str] | None
) -> Path | None:
    """Where tokens are kept: the folder given, or the nearest to a store that is there; None: with temporary files.

    Raises:
        InvalidInputError: There is no such folder.
    """
    if cache_dir is not None:
        folder = Path(local(cache_dir)).absolute()
        if not folder.is_dir():
            raise InvalidInputError(
                f"cache_dir: found no folder {folder}, expected one for the tokens of the data. Make it, or name another"
                "."
            )
        return folder
    if out is None:
        return None
    parents = Path(out).expanduser().absolute().parents
    near = next(each for each in parents if each.is_dir())
    return near if os.access(near, os.W_OK) else None


class _Waiting:
    """Shows that another process is waited for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: Bar | None = None

    def on(self, holder: str) -> None:
        """Show for whom, once more."""
        what = f"waiting for {holder or 'another process'}, which reads the data"
        self._shown = self._shown or bar(self._progress, total=0, what=what, unit="s")
        self._shown.update(_LOOK_AGAIN)

    def close(self) -> None:
        """End it."""
        if self._shown is not None:
            self._shown.close()
