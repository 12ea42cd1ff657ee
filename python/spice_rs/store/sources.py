"""Everything that rows can be selected from, brought to one shape.

A `Source` is a list of row blocks in memory or in a memory map, plus what is known about each row. Nothing is
copied unless the memory layout forces it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.ma import (
    MaskedArray,
)  # here and not at its first use: a child that is forked in an import waits for good

from spice_rs import _core
from spice_rs.arguments import choice, whole_or_none
from spice_rs.data.matching import Belonging
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.files import what_is
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.store.arrays import map_npy, read_npz
from spice_rs.store.mapped import callers_file, mapped_file
from spice_rs.store.source import Normalize, Source
from spice_rs.store.store import GradientStore
from spice_rs.store.tensors import MEMBER_SEPARATOR, split_member, tensor_cells

__all__ = [
    "Normalize",
    "Source",
    "differences_of_origin",
    "differing_origin",
    "join_sources",
    "open_source",
    "opened_beside",
]

_DTYPES = ("float16", "bfloat16", "float32", "float64")

_VIEWS = ("optimizer", "checkpoints")
"""What a store records of the states of training at which its gradients were taken."""


def open_source(source: Any, *, dim: int | None = None, dtype: str | None = None) -> Source:
    """Open anything that `spice_rs.select` takes.

    Args:
        source: a store or its folder; a `.npy` file; a `.npz` or `.safetensors` file with one matrix, or
            `file.npz::member`; a headerless file of numbers, with `dim` and `dtype`; a 2-D array; a 2-D CPU tensor; a
            list of these or of such lists, see `join_sources`; or an open source.
        dim: columns of a headerless file.
        dtype: element type of a headerless file: "float16", "bfloat16", "float32" or "float64".

    Raises:
        InvalidInputError: the source has the wrong rank or element type, needs `dim` and `dtype`, or says otherwise itself.
        StoreError: the path is no store.
    """
    dim = whole_or_none("dim", dim, remedy="Give the number of columns.")
    dtype = choice("dtype", dtype, (*_DTYPES, None))
    opened = _opened(source, dim, dtype)
    if not opened.is_joined:  # of several, these are about the headerless ones
        for name, given, own in (("dim", dim, opened.dim), ("dtype", dtype, opened.dtype)):
            if given is not None and given != own:
                raise InvalidInputError(
                    f"{name}: found {given!r} for {opened.description}, expected {own!r}, as it says itself. Leave it"
                    " out: it is for headerless files."
                )
    return opened


def opened_beside(source: Any, name: str, dim: int | None, dtype: str | None) -> Source:
    """Open a source that is given beside another one, whose `dim` and `dtype` it has if it does not say itself.

    Args:
        source: as for `open_source`.
        name: the argument.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Raises:
        InvalidInputError: see `open_source`; the message names the argument.
    """
    try:
        try:
            return open_source(source, dim=dim, dtype=dtype)
        except InvalidInputError:
            return open_source(source)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {str(error).removeprefix('source: ')}") from error


def _opened(source: Any, dim: int | None, dtype: str | None) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, GradientStore):
        return _from_store(source)
    if isinstance(source, str | bytes | os.PathLike):
        return _from_path(local(source), dim, dtype)
    if isinstance(source, list | tuple):
        return join_sources([_opened(part, dim, dtype) for part in source])
    if isinstance(source, MaskedArray):
        raise InvalidInputError(
            "source: found a masked array, expected plain rows. Fill it, or take the whole rows alone."
        )
    if isinstance(source, np.ndarray):
        file = callers_file(source)
        return _from_array(source.view(np.ndarray), f"array of shape {source.shape}", file=file)
    if type(source).__module__.split(".")[0] == "torch" and hasattr(source, "layout"):
        return _from_tensor(source)
    raise InvalidInputError(
        f"source: found {type(source).__name__}, expected a path, a GradientStore, a 2-D array or a 2-D CPU tensor, or a"
        " list of such sources. Convert rows with numpy.asarray."
    )


def join_sources(parts: Sequence[Source]) -> Source:
    """Return several sources as one pool.

    Stores keep their dataset rows, which have to differ. Rows of anything else are numbered one source after the other. The
    two do not go together.

    Raises:
        InvalidInputError: there is no source, they differ in width or in what is known of their rows, two stores have one
            dataset row, or there are stores and other sources.
        StoreMismatchError: two stores come from different models or projections.
    """
    # A pool of pools is one of all that they are made of, and judged as such.
    parts = [each for part in parts for each in (part.keep_alive if part.is_joined else [part])]
    if not parts:
        raise InvalidInputError("source: found an empty list, expected at least one source. Name one.")
    if len(parts) == 1:
        return parts[0]
    stores = [part for part in parts if isinstance(part.keep_alive, GradientStore)]
    if stores and len(stores) < len(parts):
        other = next(part for part in parts if part.index is None)
        raise InvalidInputError(
            f"source: found {stores[0].description}, a store, beside {other.description}, expected stores alone or none:"
            " stores number their rows themselves. Export the stores, or write the other rows to one."
        )
    first = parts[0]
    for part in parts[1:]:
        if part.dim != first.dim:
            raise InvalidInputError(
                f"source: found {counted(part.dim, 'column')} in {part.description}, expected {first.dim} as in"
                f" {first.description}. Select from rows of one projection."
            )
        if stores:
            _check_same_origin(first.keep_alive, part.keep_alive)
    index = None
    if stores:
        index = np.concatenate([part.index for part in parts if part.index is not None])
        _check_disjoint(index, parts)
    tokens = [part.num_tokens for part in parts if part.num_tokens is not None]
    scales = [part.scale for part in parts if part.scale is not None]
    fingerprint = None
    if stores:
        # The order of the stores changes no pick.
        known = sorted(str(part.fingerprint) for part in parts)
        fingerprint = hashlib.blake2b("".join(known).encode(), digest_size=16).hexdigest()
    return Source(
        blocks=[block for part in parts for block in part.blocks],
        rows=sum(part.rows for part in parts),
        dim=first.dim,
        dtype="+".join(dict.fromkeys(part.dtype for part in parts)),
        description=" + ".join(part.description for part in parts),
        index=index,
        scale=np.concatenate(scales) if scales else None,
        num_tokens=np.concatenate(tokens) if len(tokens) == len(parts) else None,
        reduction=first.reduction,
        fingerprint=fingerprint,
        data=_joined_data([part.data for part in parts], index),
        keep_alive=list(parts),
        origin=(join_sources, (list(parts),)),
    )


def _joined_data(
    parts: Sequence[dict[str, Any] | None], index: npt.NDArray[np.int64] | None
) -> dict[str, Any] | None:
    """Return what is known of the data that stores with one numbering were extracted from, as `Belonging.about` has it.

    Data that have grown meanwhile are those of the store that had the most. Of stores that read them in other ways nothing
    is known.
    """
    known = [part for part in parts if part is not None]
    if index is None or len(known) < len(parts):
        return None
    latest = max(known, key=lambda part: part["total"])
    if any(
        {**part, "total": 0, "fingerprint": 0} != {**latest, "total": 0, "fingerprint": 0} for part in known
    ):
        return None
    return None if index.max(initial=-1) >= latest["total"] else latest


def _check_same_origin(a: GradientStore, b: GradientStore) -> None:
    """Refuse stores whose rows cannot be compared: of another loss, model or projection."""
    for name, found, expected in _differences(_origin(a), _origin(b), ("reduction", "model", "projection")):
        raise StoreMismatchError(
            f"{b.path}: {name}: found {found!r}, expected {expected!r} as in {a.path}. Select from stores that were"
            " extracted with the same settings."
        )


def differing_origin(source: Source, other: Source) -> list[tuple[str, Any, Any]]:
    """Return what makes rows of another source gradients of another kind: (its name, what it is there, what here).

    Nothing is known of what are no stores.
    """
    a, b = (_first_store(each) for each in (source, other))
    if a is None or b is None:
        return []
    return differences_of_origin(_origin(a), _origin(b))


def differences_of_origin(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The same of what two stores record: their provenance, and their reduction."""
    parts: list[tuple[str, Any, Any]] = []
    names = ("reduction", "model", "tracked", "projection", "loss", *_VIEWS)
    for name, found, expected in _differences(here, there, names):  # of objects, the entries that differ
        if isinstance(found, dict) and isinstance(expected, dict):
            keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            parts += [(f"{name}.{key}", found.get(key), expected.get(key)) for key in keys]
        else:
            parts.append((name, found, expected))
    return parts


def _first_store(source: Source) -> GradientStore | None:
    held = source.keep_alive[0].keep_alive if source.is_joined else source.keep_alive
    return held if isinstance(held, GradientStore) else None


def _origin(store: GradientStore) -> dict[str, Any]:
    return {**store.provenance, "reduction": store.reduction}


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    """Return (name, b's, a's) of what differs."""
    return [(name, b.get(name), a.get(name)) for name in names if a.get(name) != b.get(name)]


def _check_disjoint(index: npt.NDArray[np.int64], parts: Sequence[Source]) -> None:
    order = np.argsort(index, kind="stable")
    twice = np.flatnonzero(index[order][1:] == index[order][:-1])
    if twice.size:
        ends = np.cumsum([part.rows for part in parts])
        a, b = (
            parts[int(np.searchsorted(ends, order[twice[0] + at], side="right"))].description for at in (0, 1)
        )
        raise InvalidInputError(
            f"source: found row {int(index[order[twice[0]]])} in {a} and in {b}, expected each dataset row once. If they"
            " are the same rows, `spice-rs merge` keeps them once; rows of different datasets need one numbering."
        )


def _from_store(store: GradientStore) -> Source:
    return Source(
        blocks=[store._core],
        rows=len(store),
        dim=store.dim,
        dtype=store.dtype,
        description=store.path,
        index=store.index,
        scale=store._core.scale.astype(np.float64),
        num_tokens=store.num_tokens,
        reduction=store.reduction,
        fingerprint=store.fingerprint,
        data=Belonging.about(store.provenance),
        keep_alive=store,
        origin=(_from_store, (store,)),
    )


def _from_path(text: str, dim: int | None, dtype: str | None) -> Source:
    name, member = split_member(text)
    path = Path(name)
    found = what_is(path)
    if path.suffix == ".npz" and found != "a folder":
        array, member = read_npz(path, member)
        opened = _from_array(array, f"{path}{MEMBER_SEPARATOR}{member}")
        return replace(opened, origin=(_reopened, (os.path.abspath(text), dim, dtype, _state(path))))
    if found not in (None, "a folder"):
        found = f"{found} or folder" if found == "no such file" else found
        raise InvalidInputError(
            f"{path}: found {found}, expected a gradient store, a .npy or .npz file or a file of numbers. Check the path,"
            " or make a store with `spice-rs extract`."
        )
    if member and (found or path.suffix != ".safetensors"):
        raise InvalidInputError(
            f"{text}: found the member {member!r} of {path}, expected one of an .npz or .safetensors file: others have"
            " none. Leave it out."
        )
    if found:
        return _from_store(GradientStore(path))
    before = _state(path)
    opened = _from_file(path, member, dim, dtype)
    return replace(opened, origin=(_reopened, (os.path.abspath(text), dim, dtype, before)))


def _state(path: Path) -> tuple[int, int] | None:
    """Return (bytes, time of the last change in ns) of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _reopened(text: str, dim: int | None, dtype: str | None, state: tuple[int, int] | None) -> Source:
    """Open the file of a source that was pickled.

    Raises:
        StoreMismatchError: it has changed since.
    """
    path = Path(split_member(text)[0])
    if path.is_file() and _state(path) != state:
        raise StoreMismatchError(
            f"{path}: content: found a file that was written to since its source was pickled, expected the same. Open it"
            " again, and pickle that."
        )
    return _from_path(text, dim, dtype)


def _from_file(path: Path, member: str, dim: int | None, dtype: str | None) -> Source:
    if path.suffix == ".npy":
        array = map_npy(path)
        return _from_array(
            array, str(path), file=mapped_file(array) if isinstance(array, np.memmap) else None
        )
    if path.suffix == ".safetensors":
        cells, kind, rows, columns, name, file = tensor_cells(path, member)
        block = (cells, kind, rows) if file is None else (cells, kind, rows, file)
        return Source([block], rows, columns, kind, f"{path}{MEMBER_SEPARATOR}{name}", keep_alive=cells)
    if path.suffix in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz"):
        raise InvalidInputError(
            f"{path}: found a {path.suffix} file, which holds records or picks, expected gradients: a store, .npy or .npz."
            " Extract them first (`spice-rs extract`, spice_rs.extract), and select from that store."
        )
    if path.suffix in (".pt", ".pth"):
        raise InvalidInputError(
            f"{path}: found a {path.suffix} file, expected a gradient store, .npy, .npz or a headerless file of numbers."
            " Load it yourself and pass the array."
        )
    if dim is None or dtype is None:
        raise InvalidInputError(
            f"{path}: found a file without a known header, expected a gradient store or a .npy or .npz file."
            " For a numpy.memmap file give dim= (columns) and dtype=."
        )
    return _from_headerless(path, dim, dtype)


def _from_headerless(path: Path, dim: int, dtype: str) -> Source:
    _check_dtype(dtype)
    width = dim * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
    size = path.stat().st_size
    if size == 0 or size % width:
        raise InvalidInputError(
            f"{path}: found {counted(size, 'byte')}, expected a multiple of {width} (dim={dim} × {dtype}). Check"
            " dim and dtype."
        )
    cells = np.memmap(path, dtype=np.uint8, mode="r")
    rows = size // width
    return Source([(cells, dtype, rows, mapped_file(cells))], rows, dim, dtype, str(path), keep_alive=cells)


def _from_array(
    array: npt.NDArray[Any],
    description: str,
    dtype: str | None = None,
    file: _core.MappedFile | None = None,
) -> Source:
    dtype, whole = dtype or array.dtype.name, array
    if array.ndim != 2 or 0 in array.shape:
        raise InvalidInputError(
            f"{description}: found shape {array.shape}, expected (rows, columns) with at least one of each."
            " Stack the gradients as rows."
        )
    _check_dtype(dtype, description)
    if array.dtype.byteorder not in ("=", "|", "<" if sys.byteorder == "little" else ">"):
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.require(array, requirements=["C", "A"])
    if file is not None:
        file.check()  # it may have been copied
    cells = array.reshape(-1).view(np.uint8)
    block: tuple[Any, ...] = (cells, dtype, array.shape[0])
    if file is not None and np.may_share_memory(array, whole):
        block += (file,)
    return Source([block], array.shape[0], array.shape[1], dtype, description, keep_alive=array)


def _from_tensor(tensor: Any) -> Source:
    if tensor.device.type != "cpu":
        raise InvalidInputError(
            f"source: found a tensor on {tensor.device}, expected a CPU tensor. Move it with .cpu() first."
        )
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise InvalidInputError(
            f"source: found a tensor of layout {tensor.layout}, expected a dense one. Call to_dense()."
        )
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        _check_dtype(str(tensor.dtype), "source")
    tensor = tensor.detach().contiguous()
    description = f"tensor of shape {tuple(tensor.shape)}"
    if tensor.dtype == torch.bfloat16:
        return _from_array(tensor.view(torch.int16).numpy(), description, "bfloat16")
    return _from_array(tensor.numpy(), description)


def _check_dtype(dtype: str, description: str = "dtype") -> None:
    if dtype not in _DTYPES:
        expected = ", ".join(_DTYPES[:-1]) + f" or {_DTYPES[-1]}"
        raise InvalidInputError(
            f"{description}: found {dtype}, expected {expected}. Convert the rows, for example with .astype('float32')."
        )
