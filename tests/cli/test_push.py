"""`rlhf-lab push` with a stand-in for the Hub: which files, where, and one sentence for each way to fail."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from small import train
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.policies import hub_lookup


@pytest.fixture(scope="module")
def run(model, pairs, tmp_path_factory):
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("push") / "run"
    assert main(train("sft", model, pairs, out, "--lora-rank", "2")) == 0
    return out


@pytest.fixture
def hub(monkeypatch):
    """The Hub: what it was asked, and the error that it gives."""
    seen = SimpleNamespace(created=None, commits=[], error=None)

    class Api:
        def create_repo(self, name, private, exist_ok):
            if seen.error is not None:
                raise seen.error
            seen.created = (name, private, exist_ok)
            return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

        def create_commit(self, name, operations, commit_message):
            files = {operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations}
            seen.commits.append((name, files, commit_message))
            return SimpleNamespace(commit_url=f"https://hub/{name}/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(hub_lookup, "hub_responds", lambda: True)
    return seen


def test_a_run_is_pushed_in_one_commit_with_its_card_and_without_checkpoints(run, hub, capsys):
    assert main(["push", str(run), "--to", "tiny", "--message", "hello"]) == 0
    assert hub.created == ("tiny", True, True)
    ((name, files, message),) = hub.commits
    assert (name, message) == ("me/tiny", "hello")
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert files["README.md"] == (run / "README.md").read_bytes() and files["README.md"].startswith(b"---")
    assert {"config.json", "tokenizer.json", "settings.yaml", "adapters/adapter_model.safetensors"} <= set(files)
    assert not any("checkpoints" in path or path == "run.json" for path in files)
    assert "https://hub/me/tiny/commit/1" in capsys.readouterr().err
    assert main(["push", str(run), "--to", "me/open", "--no-private"]) == 0 and hub.created[1] is False


def test_offline_a_push_fails_with_one_sentence(run, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "The Hugging Face Hub cannot be reached, so nothing of" in line and "HF_HUB_OFFLINE" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "You are not logged in, so nothing was pushed to me/tiny"),
        (
            HfHubHTTPError(
                "403 Forbidden\nmore", response=httpx.Response(403, request=httpx.Request("POST", "http://h"))
            ),
            "did not accept the upload to me/tiny (403 Forbidden)",
        ),
    ],
)
def test_the_hub_s_refusal_is_one_sentence(error, message, run, hub, capsys):
    hub.error = error
    assert main(["push", str(run), "--to", "me/tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and hub.commits == []


def test_what_is_no_finished_run_or_no_name_is_refused_before_the_hub_is_asked(run, hub, tmp_path, capsys):
    half = shutil.copytree(run, tmp_path / "half")
    (half / "README.md").unlink()
    for words, message in (
        ([str(tmp_path / "nothing"), "--to", "me/tiny"], "contains no run"),
        ([str(half), "--to", "me/tiny"], "is not finished. Run it again with --resume"),
        ([str(run), "--to", "a b"], "to must be the name of a repository"),
        ([str(run), "--to", "me/it/too"], "to must be the name of a repository"),
    ):
        assert main(["push", *words]) == 2
        assert message in capsys.readouterr().err
    assert hub.created is None and hub.commits == []
