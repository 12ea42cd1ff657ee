"""Files of stores as bytes: taken apart, changed, and sealed again so that only the change is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*.safetensors"))


def split(path: Path) -> tuple[dict, bytes]:
    """The header of a shard as JSON, and its data section."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def xxh3(data: bytes) -> str:
    xxhash = pytest.importorskip("xxhash")
    return "xxh3-64:" + xxhash.xxh3_64_hexdigest(data)


def rows_checksum(header: dict, data: bytes) -> str:
    """The sum of the rows' checksums, as store/mod.rs has it."""
    xxhash = pytest.importorskip("xxhash")
    rows = int(header["__metadata__"]["rows"])

    def cells(name: str, row: int) -> bytes:
        if name not in header:
            return b"\xff" * 4
        start, end = header[name]["data_offsets"]
        size = (end - start) // rows
        return data[start + row * size : start + (row + 1) * size]

    total = 0
    for row in range(rows):
        seed = int.from_bytes(cells("index", row), "little")
        seed = xxhash.xxh3_64_intdigest(cells("gradients", row), seed=seed)
        values = b"".join(cells(name, row) for name in ("scale", "norm", "loss", "num_tokens"))
        values += cells("record", row) if "record" in header else b""
        total += xxhash.xxh3_64_intdigest(values, seed=seed)
    return f"xxh3-64:{total % 2**64:016x}"


def sealed(header: dict, data: bytes) -> bytes:
    """A shard with this header whose checksums hold."""
    metadata = dict(header["__metadata__"])
    metadata.pop("header_checksum")
    gradients = header.get("gradients", {}).get("data_offsets", [len(data)])[0]
    if isinstance(gradients, int):
        metadata["columns_checksum"] = xxh3(data[:gradients])
    metadata["data_checksum"] = xxh3(data)
    header = {"__metadata__": {"header_checksum": "xxh3-64:" + "0" * 16} | metadata} | {
        key: value for key, value in header.items() if key != "__metadata__"
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    start = struct.pack("<Q", len(text)) + text
    return start.replace(b"xxh3-64:" + b"0" * 16, xxh3(start).encode(), 1) + data


def sealed_schema(members: str) -> bytes:
    """A store.json of these members, JSON without the braces, whose checksum holds."""
    text = f'{{{members},\n  "checksum": "xxh3-64:{"0" * 16}"\n}}\n'.encode()
    return text[:-20] + xxh3(text)[-16:].encode() + text[-4:]


def put(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path
