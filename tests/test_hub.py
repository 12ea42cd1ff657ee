"""Hub ids where the hub is out of reach: one line within seconds, and what is cached is loaded at once."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import spice_rs
from command import run
from spice_rs import hub
from spice_rs.data.dataset import load_records
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.proxy import load_tokenizer
from tiny import make_records

SETTINGS = {"dim": 16, "progress": False, "min_coverage": 0}


@pytest.fixture
def silent(monkeypatch):
    """A hub that takes connections and never answers."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        hub.asked.clear()
        yield
    hub.asked.clear()


@pytest.fixture
def refused(monkeypatch):
    """A hub whose machine takes no connection."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    hub.asked.clear()
    yield
    hub.asked.clear()


@pytest.mark.parametrize("place", ["silent", "refused"])
def test_a_hub_id_out_of_reach_takes_one_line_and_seconds(place, request, proxy, tmp_path, capsys):
    request.getfixturevalue(place)
    begun = time.monotonic()
    for model, data in (("owner/model", make_records(2)), (proxy, "owner/data")):
        with pytest.raises(InvalidInputError) as caught:
            spice_rs.extract(model, data, tmp_path / "s", **SETTINGS)
        message = str(caught.value)
        assert message.startswith(
            f"{model if model == 'owner/model' else data}: found no file or folder of this name. And no hub"
        )
        for part in ("http://127.0.0.1:", "out of reach", "Give a path", "HF_HOME", "HF_ENDPOINT"):
            assert part in message
        assert "\n" not in message
    assert run("extract", "--model", "owner/model", "--data", tmp_path, "--out", tmp_path / "s") == 2
    assert time.monotonic() - begun < 20
    assert capsys.readouterr().err.splitlines()[-1].startswith("spice-rs: ")


def test_what_is_cached_is_loaded_without_the_hub(refused, proxy, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    kept = tmp_path / "models--owner--small"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(revision)
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / revision).symlink_to(proxy)
    try:
        path = huggingface_hub.snapshot_download("owner/small", cache_dir=tmp_path, local_files_only=True)
    except OSError:
        pytest.skip("another layout of the cache")
    assert path
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    begun = time.monotonic()
    tokenizer = load_tokenizer("owner/small", gguf_file=None, trust_remote_code=False)
    assert len(tokenizer) == 10
    assert time.monotonic() - begun < 10
    assert not constants.HF_HUB_OFFLINE


def test_what_is_meant_as_a_path_is_never_looked_for_on_the_hub(silent, proxy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "small").mkdir(parents=True)
    for name in (
        "./smal",
        "models/smal",
        f"{tmp_path}/models/smal",
        "~/no/smal",
        "a/b/c",
        "small.gguf",
    ):
        with pytest.raises(InvalidInputError, match="no such folder, expected one with a model") as caught:
            spice_rs.extract(name, make_records(2), tmp_path / "s", **SETTINGS)
        assert ("did you mean" in str(caught.value)) == ("models/smal" in name)
    for name in ("./pol", "models/smal"):
        with pytest.raises(InvalidInputError, match="no such file or folder"):
            load_records(name)
    (tmp_path / "pool.jsonl").write_text("")
    with pytest.raises(
        InvalidInputError, match=r"pol.jsonl: no such file; check the path; did you mean pool.jsonl\?"
    ):
        load_records("pol.jsonl")
    assert not hub.asked


def test_a_hub_that_answers_is_asked_once(monkeypatch):
    from huggingface_hub import constants

    heard = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub.asked.clear()
        for _ in range(3):
            with hub.reached("owner/model", "model"):
                assert not constants.HF_HUB_OFFLINE
        server.shutdown()
    assert heard == ["/"]
    hub.asked.clear()
