"""What the tests of commands share: made once, read by many."""

import pytest
from small import make, pair_rows, train, write_lines

from rlhf_lab.cli.main import main


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """The lab's cache is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_LAB_CACHE", str(tmp_path_factory.mktemp("lab-cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return make(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", pair_rows())


@pytest.fixture(scope="session")
def reward(model, pairs, tmp_path_factory) -> str:
    """A reward model's output folder."""
    out = tmp_path_factory.mktemp("rewards") / "reward"
    assert main(train("reward-model", model, pairs, out)) == 0
    return str(out)


@pytest.fixture(scope="session")
def ranker(model, pairs, tmp_path_factory) -> str:
    """A ranker's output folder."""
    out = tmp_path_factory.mktemp("rewards") / "ranker"
    assert main(train("ranker", model, pairs, out)) == 0
    return str(out)
