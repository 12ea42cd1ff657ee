"""Files that are not what their names say, lists that lead elsewhere, names that no system opens, as each kind of input."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.data.records import load_records
from spice_rs.errors import InvalidInputError
from tiny import make_records

RECORDS = make_records(6)
LINES = "".join(json.dumps(each) + "\n" for each in RECORDS).encode()
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(40)


@pytest.mark.parametrize(
    ("packed", "by"),
    [
        (ZSTD, "zstd"),
        (bz2.compress(LINES), "bzip2"),
        (lzma.compress(LINES), "xz"),
        (b"PK\x03\x04" + bytes(40), "zip"),
    ],
)
@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.zst", "x.jsonl.xz", "x.jsonl.zst"]
)
def test_what_another_program_has_packed_is_known_by_its_content(tmp_path, packed, by, name):
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(
        InvalidInputError, match=rf"{name}: found a file that {by} has packed, expected .*Unpack it"
    ):
        load_records(tmp_path / name)


@pytest.mark.parametrize("packed", [ZSTD, bz2.compress(b"1\n")])
def test_lists_of_rows_and_shares_too(tmp_path, packed, capsys):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    (tmp_path / "rows.json").write_bytes(packed)
    for option in ("--exclude", "--include", "--initial"):
        assert run("select", tmp_path / "x.npy", "-k", 1, option, tmp_path / "rows.json") == 2
        assert "has packed" in capsys.readouterr().err


def test_what_gzip_has_packed_is_read_whatever_it_is_called(tmp_path):
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(LINES))
        assert len(load_records(tmp_path / name)) == len(RECORDS)
    (tmp_path / "plain.csv").write_text("instruction,response\nBZh9 is no packed file,b\n")
    assert len(load_records(tmp_path / "plain.csv")) == 1
    (tmp_path / "short.csv").write_text("instruction,response\na,b\n")
    assert len(load_records(tmp_path / "short.csv")) == 1


@pytest.mark.parametrize("part", ["../weights.safetensors", "/etc/passwd", "a/../../x", "..\\x", 3, None])
def test_a_model_whose_list_of_weights_leads_elsewhere_is_refused(proxy, tmp_path, part):
    shutil.copytree(proxy, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": part}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        InvalidInputError, match=r"index\.json: weight_map: found the file .*expected names of files in"
    ):
        spice_rs.extract(tmp_path / "m", RECORDS, tmp_path / "s", dim=8, progress=False)


INPUTS = {
    "source": lambda at, x: ("select", at, "-k", 1),
    "member": lambda at, x: ("select", f"{at}::x", "-k", 1),
    "data": lambda at, x: ("select", x / "x.npy", "-k", 1, "--data", at),
    "groups": lambda at, x: ("select", x / "x.npy", "-k", 1, "--groups", "g", "--data", f"{at}.jsonl"),
    "rows": lambda at, x: ("select", x / "x.npy", "-k", 1, "--exclude", at),
    "selection": lambda at, x: ("certify", at, x / "x.npy"),
    "picks": lambda at, x: ("explain", at, x / "x.npy", 1),
    "store": lambda at, x: ("info", at),
    "repaired": lambda at, x: ("repair", at),
    "shares": lambda at, x: ("select", x / "x.npy", "-k", 1, "--groups", "g", "--group-shares", f"{at}.json"),
    "out": lambda at, x: ("select", x / "x.npy", "-k", 1, "--out", at / "below"),
    "model": lambda at, x: ("extract", "--model", at, "--data", x / "pool.jsonl", "--out", x / "s"),
    "template": lambda at, x: ("extract", "--model", x / "m", "--data", x / "pool.jsonl", "--out", x / "s",
                               "--chat-template", at),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["loop", "newline", "long"])
@pytest.mark.parametrize("place", INPUTS)
def test_names_that_lead_nowhere_are_one_line_for_each_kind_of_input(tmp_path, capsys, kind, place):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    (tmp_path / "pool.jsonl").write_bytes(LINES)
    at = {"loop": tmp_path / "loop", "newline": tmp_path / "a\nb", "long": tmp_path / ("n" * 300)}[kind]
    if kind == "loop":
        for end in ("", ".json", ".jsonl"):
            (tmp_path / f"loop{end}").symlink_to(tmp_path / f"loop{end}")
    assert run(*INPUTS[place](at, tmp_path)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("spice-rs: ")
    assert "a fault of" not in last
