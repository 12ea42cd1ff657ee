"""docs/store-format.md is true: its reader reads what the package writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from spice_rs import GradientStore

PAGE = (Path(__file__).parents[1] / "docs" / "store-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_its_reader_reads_every_state_of_a_store(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("safetensors")
    names: dict = {}
    (reader,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(reader.splitlines()) <= 32
    exec(reader, names)

    def check() -> None:
        index, rows = names["read_store"](path)
        store = GradientStore(path)
        np.testing.assert_array_equal(index, store.index)
        np.testing.assert_array_equal(rows, store.read(np.arange(len(store))))

    path = tmp_path / "s"
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((20, 7)) * 10.0 ** rng.integers(-8, 8, (20, 1))).astype(np.float32)
    with GradientStore.create(path, dim=7, dtype=dtype, rows_per_shard=3) as writer:
        check()
        record = np.arange(20) if dtype == "int8" else None
        writer.append(rows, np.arange(20)[::-1], num_tokens=np.ones(20, int), record=record)
    check()
    old = {shard: shard.read_bytes() for shard in path.glob("shard-*")}
    GradientStore(path).compact()
    check()
    # A compaction that was killed before it removed the old shards.
    for shard, data in old.items():
        shard.write_bytes(data)
    assert len(GradientStore(path).info()["superseded"]) == len(old)
    check()
    GradientStore(path).delete([3, 4])
    check()
