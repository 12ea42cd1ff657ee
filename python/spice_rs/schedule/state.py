"""What a run keeps on disk, so that a killed one goes on with the same picks and the same weights.

    state/state.json            how far the run is; its settings; the checksums of the two others
    state/picks.jsonl           the picks so far, one a line; appended to
    state/step-N.safetensors    trained weights and the optimiser's moments after N steps

`state.json` is replaced as a whole after each window, and is the only file that counts: what `picks.jsonl` has beyond
the length that it states is cut off, and a `step-N` that it does not name is removed. So a kill at any moment leaves the
run at the end of a window. `.lock` is held by the process that works here. Dropout is seeded by the number of the step,
so no generator's state is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from spice_rs.atomic import replacing
from spice_rs.errors import CorruptStoreError, InvalidInputError, StoreError, StoreMismatchError
from spice_rs.files import what_is
from spice_rs.locks import locked
from spice_rs.nouns import counted
from spice_rs.own_json import parsed
from spice_rs.paths import local
from spice_rs.printable import short
from spice_rs.selection.form import is_real, is_whole
from spice_rs.selection.saved import check_same

_FORMAT = "spice-rs schedule"
_VERSION = 1
_REMEDY = (
    "Go on with the settings, the model and the data of the first run, or name another folder to start anew."
)


class RunState:
    """The state folder of one run; it is made, or found and checked. Close it when the run ends.

    Args:
        folder: The folder.
        run: Everything that decides the picks, as JSON knows it.

    Attributes:
        window: Windows done.
        losses: Of each optimiser step made, nats per token before it.
        picks: The picks so far, in order.
        metrics: Bytes of the metrics' file that belong to these windows.

    Raises:
        StoreMismatchError: The folder is of a run with other settings, data or weights.
        CorruptStoreError: A file was cut short or altered.
        StoreError: The state is something else, of a later version, or in use by another process.
        InvalidInputError: No folder can be there.
    """

    def __init__(self, folder: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        self.folder = Path(local(folder))
        self.window = self.metrics = 0
        self.losses: list[float] = []
        self.picks: list[dict[str, Any]] = []
        self._run = json.loads(json.dumps(run))
        self._weights: dict[str, str] | None = None
        self._length, self._digest = 0, hashlib.sha256()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"{self.folder}: no folder can be made here: {error.strerror}") from error
        self._lock = _locked(self.folder / ".lock")
        try:
            if os.path.lexists(self._path):
                self._open()
            self._sweep()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.close()

    @property
    def _path(self) -> Path:
        return self.folder / "state.json"

    @property
    def _picks(self) -> Path:
        return self.folder / "picks.jsonl"

    def tensors(self) -> dict[str, torch.Tensor] | None:
        """Return what was saved after the last step; None if there was no step.

        Raises:
            CorruptStoreError: The file was cut short or altered.
        """
        if self._weights is None:
            return None
        path = self.folder / self._weights["file"]
        contents = _contents(path)
        if (found := hashlib.sha256(contents).hexdigest()) != self._weights["sha256"]:
            _corrupt(path, f"checksum {found}", self._weights["sha256"])
        try:
            loaded: dict[str, torch.Tensor] = load(contents)
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            MemoryError,
        ) as error:  # its checksum is right, so that a program has written it so
            _corrupt(path, f"no safetensors file ({error})", "one")
        return loaded

    def advance(
        self,
        picks: Sequence[Mapping[str, Any]],
        *,
        loss: float | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        metrics: int,
    ) -> None:
        """Keep what one window has brought; it is on disk when this returns.

        Args:
            picks: Its picks.
            loss: Of the step after the window, if there was one.
            tensors: What `ProxyTraining.tensors` returned after that step.
            metrics: Bytes that the metrics' file has by now.
        """
        lines = "".join(json.dumps(pick, allow_nan=False) + "\n" for pick in picks).encode()
        with open(self._picks, "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        weights = self._weights
        losses = self.losses if loss is None else [*self.losses, loss]
        if tensors is not None:
            contents = save(dict(tensors))
            weights = {
                "file": f"step-{len(losses)}.safetensors",
                "sha256": hashlib.sha256(contents).hexdigest(),
            }
            with replacing(self.folder / weights["file"]) as file:
                file.write(contents)
        old, self._weights = self._weights, weights
        self._digest.update(lines)
        self._length += len(lines)
        self.window, self.losses, self.metrics = self.window + 1, losses, metrics
        self.picks += [dict(pick) for pick in picks]
        with replacing(self._path) as file:
            file.write(self._as_json())
        if old is not None and old != weights:
            (self.folder / old["file"]).unlink(missing_ok=True)

    def _as_json(self) -> bytes:
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "window": self.window,
            "losses": self.losses,
            "weights": self._weights,
            "picks": {"count": len(self.picks), "bytes": self._length, "sha256": self._digest.hexdigest()},
            "metrics": self.metrics,
            "run": self._run,
        }
        return json.dumps({**content, "sha256": _seal(content)}, indent=1).encode() + b"\n"

    def _open(self) -> None:
        content = self._read()
        check_same(self._path, content["run"], self._run, StoreMismatchError, _REMEDY)
        self.window, self.losses, self.metrics = content["window"], content["losses"], content["metrics"]
        self._weights = content["weights"]
        made = content["picks"]
        contents = _contents(self._picks) if os.path.lexists(self._picks) else b""
        kept = contents[: made["bytes"]]
        if len(kept) != made["bytes"]:
            _corrupt(self._picks, counted(len(contents), "byte"), f"at least {made['bytes']}")
        self._digest.update(kept)
        if self._digest.hexdigest() != made["sha256"]:
            _corrupt(self._picks, f"checksum {self._digest.hexdigest()}", made["sha256"])
        self._length = len(kept)
        try:
            self.picks = [parsed(line) for line in kept.splitlines()]
        except ValueError as error:  # its checksum is right, so that a program has written it so
            _corrupt(self._picks, f"no JSON ({error})", "picks")
        if len(self.picks) != made["count"] or not all(map(_is_pick, self.picks)):
            _corrupt(
                self._picks,
                f"{counted(len(self.picks), 'line')}, some no picks",
                counted(made["count"], "pick"),
            )

    def _read(self) -> dict[str, Any]:
        try:
            content = parsed(_contents(self._path))
            known = content["format"] == _FORMAT
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise StoreError(f"{self._path}: found no state of a run, expected one. Name another folder.")
        if content.get("version") != _VERSION:
            raise StoreError(
                f"{self._path}: found version {short(content.get('version'))}, expected {_VERSION}."
                " Use the version of spice-rs that wrote it."
            )
        seal = content.pop("sha256", None)
        if seal != (expected := _seal(content)):
            _corrupt(self._path, f"checksum {short(seal)}", expected)
        for name, (legal, check) in _FORM.items():
            if name not in content or not check(content[name]):
                _corrupt(self._path, f"{name} {short(content.get(name))}", legal)
        return dict(content)

    def _sweep(self) -> None:
        """Remove what a killed run left behind: picks after the last window, and weights that count for nothing."""
        if self._picks.exists():
            os.truncate(self._picks, self._length)
        named = None if self._weights is None else self._weights["file"]
        for path in self.folder.iterdir():
            stray = path.name.startswith("step-") and path.name != named
            if stray:
                path.unlink()


def _check_own(path: Path) -> None:
    """Refuse what a run has not made: nothing of a state is read or written through links.

    Raises:
        StoreError: something else than a file lies there.
    """
    found = "a link" if path.is_symlink() else what_is(path)
    if found not in (None, "no such file"):
        raise StoreError(
            f"{path}: found {found}, expected a file of the run. Remove it, or name another folder."
        )


def _contents(path: Path) -> bytes:
    """Return what is in a file of the state."""
    _check_own(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        _corrupt(path, "no such file", "what state.json names")
    except OSError as error:
        raise StoreError(
            f"{path}: found a file that cannot be read ({error.strerror}), expected one of the run. Copy it again."
        ) from error


def _is_weights(value: Any) -> bool:
    """Whether it names weights, in the folder itself."""
    if not isinstance(value, dict) or value.keys() != {"file", "sha256"}:
        return False
    name, digest = value["file"], value["sha256"]
    named = isinstance(name, str) and re.fullmatch(r"step-[0-9]{1,18}\.safetensors", name) is not None
    return named and isinstance(digest, str)


def _is_made(value: Any) -> bool:
    """Whether it says how many picks there are."""
    counts = isinstance(value, dict) and is_whole(value.get("count")) and is_whole(value.get("bytes"))
    return counts and isinstance(value.get("sha256"), str)


def _is_pick(value: Any) -> bool:
    """Whether it is what a window has brought."""
    return (
        isinstance(value, dict)
        and all(is_whole(value.get(name)) for name in ("index", "rank", "window", "step"))
        and all(is_real(value.get(name)) for name in ("gain", "conflict", "score"))
    )


_FORM: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "window": ("a count", is_whole),
    "losses": ("a list of numbers", lambda value: isinstance(value, list) and all(map(is_real, value))),
    "weights": (
        "null, or step-N.safetensors with its checksum",
        lambda value: value is None or _is_weights(value),
    ),
    "picks": ("count, bytes and checksum", _is_made),
    "metrics": ("a count", is_whole),
    "run": ("the settings of a run", lambda value: isinstance(value, dict)),
}
"""What state.json has: what each may be, for messages and as a check."""


def _locked(path: Path) -> IO[bytes]:
    """Return a file that no other process has locked; the lock ends with the process, however it ends."""
    _check_own(path)
    file = open(path, "ab")
    if locked(file.fileno()) is False:
        file.close()
        raise StoreError(
            f"{path.parent}: found another process at work on this run, expected none. Wait for it, or name another folder."
        )
    return file


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _corrupt(path: Path, found: str, expected: str) -> NoReturn:
    raise CorruptStoreError(
        f"{path}: found {found}, expected {expected}. The run cannot go on: start anew in another folder."
    )
