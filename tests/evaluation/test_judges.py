"""Judges, the one behind a URL against a stub on this machine."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny_models import chat_tokenizer

from rlhf_lab.batch import Tokens
from rlhf_lab.data.preferences import PreferenceTexts, tokenise
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import EndpointJudge, GoldJudge, RewardJudge, win_rate
from rlhf_lab.evaluation.judges import read_verdict
from rlhf_lab.worlds import text

KEY = "sk-very-secret-0123456789"


class Stub(ThreadingHTTPServer):
    """Answers POSTs by `self.answer(question, number of times it was asked)`: a text, a status, or both and headers."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.asked, self.headers_seen = answer, Counter(), []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        server = self.server
        server.asked[question] += 1
        server.headers_seen.append((self.path, dict(self.headers), body))
        found = server.answer(question, server.asked[question])
        status, text, headers = (200, found, {}) if isinstance(found, str) else found
        reply = text if status != 200 else json.dumps({"choices": [{"message": {"content": text}}]})
        if status == 200 and text.startswith("RAW "):
            reply = text[4:]
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.encode())
        except OSError:
            pass  # the judge did not wait

    def log_message(self, *ignored):
        pass


@pytest.fixture
def stub():
    made = []

    def make(answer):
        made.append(Stub(answer))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


TEMPLATE = "{prompt}|{a}|{b}"


def judge(server, **more):
    settings = {"key_variable": "JUDGE_KEY", "question": TEMPLATE, "pause": 0.01, "timeout": 5.0, "progress": False}
    return EndpointJudge(server if isinstance(server, str) else server.url, "stub", **(settings | more))


def longer(question, times):
    _, a, b = question.split("|")
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def test_gold_and_reward_models_prefer_the_larger_score_and_ties_count_half():
    by_length = GoldJudge(lambda prompts, texts: [float(len(text)) for text in texts])
    assert by_length(["x"] * 3, ["aa", "a", "b"], ["a", "aa", "c"]) == [1.0, 0.0, 0.5]
    assert GoldJudge(by_length.gold, tie=1.0)(["x"], ["aa"], ["a"]) == [0.5]
    with pytest.raises(LabError, match="not a number"):
        GoldJudge(lambda prompts, texts: [float("nan")] * len(texts))(["x"], ["a"], ["b"])
    with pytest.raises(LabError, match="2 prompts came with 1 and 1"):
        by_length(["x", "x"], ["a"], ["b"])


class Bytes:
    """A tokenizer of letters: a = 1 … z = 26; 0 ends a text and 27 opens one."""

    eos_token_id, bos_token_id = 0, 27

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        def ids(text):
            return ([27] if add_special_tokens else []) + [ord(c) - 96 for c in text]

        return {"input_ids": ids(texts) if isinstance(texts, str) else [ids(text) for text in texts]}


def test_a_reward_model_is_given_the_ids_it_was_trained_on_in_blocks():
    """Prompts keep the opening token, responses end in the end token once."""
    seen = []

    def reward(prompts, responses):
        seen.append((prompts.tolist(), responses.tolist()))
        return torch.where(responses.mask, responses.ids, 0).sum(-1).float()

    found = RewardJudge(reward, Bytes(), batch_size=2)(["a", "b", "c"], ["b", "a", "d"], ["a", "c", "d"])
    assert found == [1.0, 0.0, 0.5]
    assert seen == [
        ([[27, 1], [27, 2]], [[[2, 0], [1, 0]], [[1, 0], [3, 0]]]),
        ([[27, 3]], [[[4, 0], [4, 0]]]),
    ]
    assert Tokens.from_lists(seen[1][1]).shape == (1, 2, 2)


@pytest.mark.parametrize("bos", [False, True])
def test_a_reward_model_is_given_the_ids_of_training_after_a_prompt_of_a_chat_template(bos):
    """As `data.preferences.tokenise` writes them: no special token twice, and the end token is that of a turn.

    The last response already contains its end token.
    """
    tokenizer = chat_tokenizer(bos)
    user = {"role": "user", "content": "2 + 2?"}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    texts = PreferenceTexts([prompt, "2 + 2?"], ["4.", "4."], ["5.", "5.<|im_end|>"], templated=[True, False])
    pairs, _ = tokenise(texts, tokenizer, None, None, tokenizer.eos_token_id)
    seen = []

    def reward(prompts, responses):
        seen.append((prompts.tolist(), responses.tolist()))
        return torch.zeros(responses.shape[:2])

    RewardJudge(reward, tokenizer)(texts.prompts, texts.chosen, texts.rejected)
    assert seen == [(pairs.prompts.tolist(), pairs.responses.tolist())]
    assert seen[0][0][0].count(tokenizer.bos_token_id) == bos
    assert tokenizer.decode(seen[0][1][0][0]) == "4.<|im_end|>"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A", 1.0),
        ("b.", 0.0),
        ("**Tie**", 0.5),
        ("Both are fine, A is short.\nVerdict: B", 0.0),
        ("The better response is A.", 1.0),
        ("[[A]]", 1.0),
        ("A and B", None),
        ("", None),
        ("A good question", None),
    ],
)
def test_a_verdict_is_read_from_the_last_line_or_not_at_all(answer, verdict):
    assert read_verdict(answer) == verdict


def test_an_endpoint_is_asked_in_the_protocol_with_the_key_and_both_orders(stub):
    server = stub(longer)
    found = win_rate(["x", "y"], ["aaa", "b"], ["aa", "bb"], judge(server))
    assert (found.mean, found.position_bias, found.turned, found.unanswered) == (0.5, 0.0, 0.0, 0)
    assert set(server.asked) == {"x|aaa|aa", "x|aa|aaa", "y|b|bb", "y|bb|b"}
    path, headers, body = server.headers_seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "stub" and body["temperature"] == 0


def test_a_judge_that_likes_what_it_reads_first_is_found_out(stub):
    """ "A" always: each verdict turns with the order, every comparison is a tie, the bias is the whole half."""
    found = win_rate(["x", "y", "z"], ["a", "b", "c"], ["d", "e", "f"], judge(stub(lambda question, times: "A")))
    assert (found.mean, found.ties, found.turned, found.position_bias) == (0.5, 1.0, 1.0, 0.5)


def test_overload_is_waited_for_and_the_answer_kept(stub):
    server = stub(lambda q, times: (429, "slow down", {"Retry-After": "0.01"}) if times < 3 else longer(q, times))
    assert judge(server)(["x"], ["aa"], ["a"]) == [1.0]
    assert server.asked["x|aa|a"] == 3


def test_an_interrupted_run_goes_on_from_its_cache_and_a_half_line_is_asked_again(stub, tmp_path):
    cache = tmp_path / "judged" / "answers.jsonl"
    broken = stub(lambda q, times: (500, "no", {}) if q.startswith("c") else longer(q, times))
    texts = (["a", "b", "c"], ["1", "22", "3"], ["22", "1", "22"])
    with pytest.raises(LabError, match=r"answered 500.*answers\.jsonl\. Run again"):
        judge(broken, cache=cache, tries=2, workers=1)(*texts)
    assert len(cache.read_text().splitlines()) == 2
    cache.write_text(cache.read_text()[:-20])  # killed while it wrote the second
    server = stub(longer)
    assert judge(server, cache=cache)(*texts) == [0.0, 1.0, 0.0]
    assert set(server.asked) == {"b|22|1", "c|3|22"}
    again = stub(longer)
    assert judge(again, cache=cache)(*texts) == [0.0, 1.0, 0.0] and not again.asked
    assert judge(again, cache=cache, extra={"seed": 1})(["a"], ["1"], ["22"]) == [0.0] and len(again.asked) == 1
    assert KEY not in cache.read_text()
    cache.write_text("not json\n" + cache.read_text())
    with pytest.raises(LabError, match="line 1, is not a saved answer"):
        judge(again, cache=cache)


def test_answers_without_a_verdict_are_asked_again_then_left_out_and_counted(stub):
    server = stub(lambda q, times: "hm" if q.startswith("odd") or (q.startswith("late") and times < 2) else "A")
    prompts = ["odd", "late", *(f"p{i}" for i in range(10))]
    found = win_rate(prompts, ["a"] * 12, ["b"] * 12, judge(server, tries=3))
    assert (found.comparisons, found.unanswered) == (11, 1)
    assert server.asked["odd|a|b"] == 3 and server.asked["late|a|b"] == 2
    with pytest.raises(LabError, match="2 of 2 answers of stub .* contain no verdict; one is 'hm'"):
        judge(server, tries=1)(["odd", "odd"], ["a", "c"], ["b", "d"])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, f"Incorrect API key provided: {KEY}", {}),
            r"refused the request \(401\)\. Check the key in \$JUDGE_KEY",
        ),
        ((400, f"bad request of {KEY}", {}), r"400: bad request of \[key\]"),
        ((302, "", {"Location": "http://127.0.0.1:9/v1"}), "It redirects"),
        ("RAW <html>hello</html>", "not one of /v1/chat/completions"),
        (f'RAW {{"error": "{KEY}"}}', r"\[key\]"),
    ],
)
def test_a_refusal_is_one_error_at_once_that_never_shows_the_key(stub, reply, message):
    server = stub(lambda q, times: reply)
    with pytest.raises(LabError, match=message) as caught:
        judge(server)(["x"], ["a"], ["b"])
    shown = repr(caught.getrepr(style="long", showlocals=False)) + str(caught.value)
    assert KEY not in shown and caught.value.__suppress_context__
    assert sum(server.asked.values()) == 1
    assert KEY not in repr(judge(server)) and KEY not in str(vars(judge(server)))


def test_silence_and_a_dead_host_are_one_error_each(stub):
    slow = stub(lambda q, times: time.sleep(1.0) or "A")
    with pytest.raises(LabError, match=r"gave no answer in 2 attempts of 0\.1 s \(no answer in time\)"):
        judge(slow, timeout=0.1, tries=2)(["x"], ["a"], ["b"])
    dead = stub(longer)
    url = dead.url
    dead.shutdown()
    dead.server_close()
    with pytest.raises(LabError, match=r"(?i)gave no answer in 2 attempts .*refused"):
        judge(url, tries=2)(["x"] * 3, ["a", "b", "c"], ["b", "c", "d"])


def test_settings_that_would_leak_a_key_or_make_no_sense_are_refused():
    with pytest.raises(LabError, match="unencrypted"):
        judge("http://judge.example/v1")
    EndpointJudge("http://judge.example/v1", "m", key_variable=None)
    with pytest.raises(LabError, match="contains a password") as caught:
        judge(f"https://me:{KEY}@judge.example/v1")
    assert KEY not in str(caught.value)
    with pytest.raises(LabError, match="must begin with https"):
        judge("judge.example")
    with pytest.raises(LabError, match=r"lacks \{b\}"):
        judge("https://judge.example/v1", question="{prompt} {a}")
    with pytest.raises(LabError, match="tries, workers"):
        judge("https://judge.example/v1", tries=0)


def test_texts_that_hold_the_template_s_places_stay_as_they_are(stub):
    server = stub(lambda q, times: "A")
    judge(server)(["{b}"], ["{prompt}"], ["2"])
    assert list(server.asked) == ["{b}|{prompt}|2"]


def test_the_gold_reward_of_a_text_world_judges_its_own_targets():
    """A translation of the prompt itself beats the translation of another one, whichever side it is on."""
    world = text.load("translation")
    examples = world.examples("validation", 40)
    prompts, targets = [one.prompt for one in examples], [one.target for one in examples]
    others = targets[1:] + targets[:1]
    found = win_rate(prompts, targets, others, GoldJudge(world.gold))
    assert found.mean > 0.9 and found.low > 0.8
    turned = win_rate(prompts, others, targets, GoldJudge(world.gold))
    assert turned.mean == pytest.approx(1 - found.mean) and turned.error == pytest.approx(found.error)


def test_equal_texts_tie_whatever_their_places_and_scores_within_the_tie_too():
    """A reward that differs by a last digit from place to place, as a model's may."""

    def reward(prompts, responses):
        return responses.lengths.float() + 1e-3 * torch.arange(2.0) + 1e-3 * torch.arange(len(prompts))[:, None]

    texts = (["x"] * 3, ["aa", "b", "c"], ["aa", "bb", "d"])
    assert RewardJudge(reward, Bytes())(*texts) == [0.5, 0.0, 0.0]
    assert RewardJudge(reward, Bytes(), tie=0.5)(*texts) == [0.5, 0.0, 0.5]


def test_answers_are_saved_under_model_length_request_and_question():
    """Each of them changes the key; the same four have the same key."""

    def key(question="q", **more):
        made = judge("https://judge.example/v1", **{k: v for k, v in more.items() if k != "model"})
        made.model = more.get("model", made.model)
        return made._hash(question)

    keys = [key(), key("r"), key(model="other"), key(max_tokens=99), key(extra={"seed": 1}), key(extra={"seed": 2})]
    assert len(set(keys)) == 6 and key() == keys[0]


def test_further_fields_reach_the_request_and_replace_the_lab_s_own(stub):
    server = stub(longer)
    judge(server, extra={"seed": 7, "temperature": 0.5}, max_tokens=3)(["x"], ["aa"], ["a"])
    _, _, body = server.headers_seen[0]
    assert (body["seed"], body["temperature"], body["max_tokens"]) == (7, 0.5, 3)


@pytest.mark.parametrize(("told", "waits"), [("0.5", [0.5, 0.5]), ("0.001", [0.01, 0.02]), ("600", [60.0, 60.0])])
def test_a_server_s_waiting_time_counts_where_it_is_the_longer_up_to_a_minute(stub, told, waits):
    """Pauses of 0.01 s, doubled each time, are the least."""
    server = stub(lambda q, times: (429, "slow down", {"Retry-After": told}) if times < 3 else longer(q, times))
    made, seen = judge(server), []

    class Waiting:
        """Stands in for the event that ends a wait."""

        def wait(self, seconds):
            seen.append(seconds)
            return False

        def set(self):
            pass

        clear = set

    made._stop = Waiting()
    assert made(["x"], ["aa"], ["a"]) == [1.0] and seen == waits


@pytest.mark.parametrize(("without", "refused"), [(1, False), (2, True), (5, True)])
def test_a_fifth_of_the_answers_without_a_verdict_is_too_many(stub, without, refused):
    server = stub(lambda q, times: "hm" if int(q.split("|")[0]) < without else "A")
    texts = ([str(i) for i in range(10)], ["a"] * 10, ["b"] * 10)
    if refused:
        with pytest.raises(LabError, match=f"{without} of 10 answers"):
            judge(server, tries=1)(*texts)
    else:
        assert judge(server, tries=1)(*texts)[without:] == [1.0] * (10 - without)
