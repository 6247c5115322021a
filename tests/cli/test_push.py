"""`rlhf-lab push` against a server that answers as the Hub does: files, card, and one sentence for each way to fail."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from small import train
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main


@pytest.fixture(scope="module")
def run(model, pairs, tmp_path_factory):
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("push") / "run"
    assert main(train("sft", model, pairs, out, "--lora-rank", "2")) == 0
    return out


class Handler(BaseHTTPRequestHandler):
    """The Hub's answers to the requests of one upload. Every file is sent within the commit."""

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer({})

    def do_POST(self):
        hub, path = self.server.hub, self.path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        hub.calls.append((path, self.headers.get("Authorization")))
        if path.endswith(hub.fails_at or "nothing"):
            return self.answer({"error": hub.says}, hub.status)
        if path == "/api/repos/create":
            hub.created = json.loads(body)
            owner = hub.created.get("organization") or "me"
            return self.answer({"url": f"{hub.address}/{owner}/{hub.created['name']}"})
        if path == "/api/validate-yaml":
            if yaml.safe_load(json.loads(body)["content"].split("---\n")[1]):
                return self.answer({"errors": [], "warnings": []})
            return self.answer({"errors": [{"message": "no metadata"}], "warnings": []}, 400)
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        assert path.endswith("/commit/main")
        header, *files = [json.loads(line) for line in body.splitlines()]
        hub.summaries.append(header["value"]["summary"])
        hub.files = {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in files}
        return self.answer({"commitUrl": f"{hub.address}/me/tiny/commit/1", "commitOid": "1" * 40})

    def chunks(self):
        """The body of a request in chunks."""
        out = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            out += self.rfile.read(size)
            self.rfile.readline()
        return out

    def answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch):
    """The server: what it was asked, what it received, and where it fails."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    server.hub = SimpleNamespace(
        address=address, calls=[], created=None, summaries=[], files={}, fails_at=None, status=403, says=""
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


def is_private(hub):
    """Whether the repository was created as a private one. Newer versions of the client say it in another field."""
    return hub.created["private"] if "private" in hub.created else hub.created["visibility"] == "private"


def test_a_run_is_pushed_in_one_commit_with_its_card_and_without_checkpoints(run, hub, capsys):
    assert main(["push", str(run), "--to", "me/tiny", "--message", "hello"]) == 0
    assert (hub.created["name"], hub.created["organization"], is_private(hub)) == ("tiny", "me", True)
    assert hub.summaries == ["hello"]
    assert {token for _, token in hub.calls} == {"Bearer hf_of_the_test"}
    model = {path.name for path in (run / "model").iterdir()}
    adapters = {f"adapters/{path.name}" for path in (run / "adapters").iterdir()}
    assert set(hub.files) == model | adapters | {"README.md", "settings.yaml", "history.jsonl"}
    for path in ("model.safetensors", "config.json"):
        assert hub.files[path] == (run / "model" / path).read_bytes()
    assert (
        hub.files["adapters/adapter_model.safetensors"] == (run / "adapters" / "adapter_model.safetensors").read_bytes()
    )
    card = hub.files["README.md"].decode()
    assert card == (run / "README.md").read_text() and "sft" in yaml.safe_load(card.split("---\n")[1])["tags"]
    assert f"{hub.address}/me/tiny/commit/1" in capsys.readouterr().err


def test_a_name_without_an_owner_is_the_user_s_and_a_repository_may_be_public(run, hub):
    assert main(["push", str(run), "--to", "tiny", "--no-private"]) == 0
    assert not is_private(hub) and hub.calls[-1][0] == "/api/models/me/tiny/commit/main"


def test_without_a_token_nothing_is_sent(run, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "You are not logged in, so nothing was pushed to me/tiny. Run `hf auth login`" in line
    assert hub.calls == []


@pytest.mark.parametrize(
    ("at", "status", "says"),
    [
        ("/create", 401, "Invalid credentials in Authorization header"),
        ("/create", 500, "Internal error"),
        ("/commit/main", 403, "You have no write access"),
    ],
)
def test_an_error_of_the_server_is_one_sentence_with_its_words(at, status, says, run, hub, capsys):
    hub.fails_at, hub.status, hub.says = at, status, says
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "The Hub did not accept the upload to me/tiny (" in line and "Check the name" in line
    assert f"({status}: {says})" in line
    assert hub.files == {} and "hf_of_the_test" not in line


def test_a_card_that_the_hub_refuses_is_one_sentence(run, hub, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "README.md").write_text("---\n\n---\nwords\n")
    assert main(["push", str(copy), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did not accept the upload" in line and "README.md" in line and hub.files == {}


def test_a_server_that_does_not_answer_is_one_sentence(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    assert "The Hugging Face Hub cannot be reached" in capsys.readouterr().err


def test_offline_a_push_fails_with_one_sentence(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "The Hugging Face Hub cannot be reached, so nothing of" in line and "HF_HUB_OFFLINE" in line
    assert hub.calls == []


def test_what_is_no_finished_run_or_no_name_is_refused_before_the_hub_is_asked(run, hub, tmp_path, capsys):
    half = shutil.copytree(run, tmp_path / "half")
    (half / "README.md").unlink()
    for words, message in (
        ([str(tmp_path / "nothing"), "--to", "me/tiny"], "contains no run"),
        ([str(half), "--to", "me/tiny"], "is not finished. Run it again with --resume"),
        ([str(run), "--to", "a b"], "--to must be the name of a repository"),
        ([str(run), "--to", "me/it/too"], "--to must be the name of a repository"),
    ):
        assert main(["push", *words]) == 2
        assert message in capsys.readouterr().err
    assert hub.calls == []
