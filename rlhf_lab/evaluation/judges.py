r"""Which of two responses is better? A judge is a function of texts

    judge(prompts, a, b) → preferences for a, each in [0, 1], ½ for a tie, NaN where it gave no usable answer

A gold reward and a reward model score each text alone, so order cannot matter. A model that is asked may favour
what it reads first: `rlhf_lab.evaluation.win_rate` asks it in both orders, averages, and reports the bias (Zheng
et al. 2023, "Judging LLM-as-a-judge", section 3.3; Rafailov et al. 2023 used such judges in section 6).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.batch import Tokens
from rlhf_lab.data.preferences import ends_of, ids_of, opening_of, split_end
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.base import Reward
from rlhf_lab.rounding import MANY, rounding, wins


class Judge(Protocol):
    """What `win_rate` asks. `order_free` says that judge(x, a, b) = 1 − judge(x, b, a) by construction."""

    order_free: bool

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """How far each a is preferred to its b: 1, 0, ½ for a tie, or between; NaN for no answer."""
        ...


def check_texts(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> None:
    """Raise `LabError` unless there are as many prompts as responses on both sides."""
    if not len(prompts) == len(a) == len(b):
        raise LabError(f"{len(prompts)} prompts came with {len(a)} and {len(b)} responses; one each is needed.")


def _preferences(first: Tensor, second: Tensor, doubt: Tensor) -> list[float]:
    out = wins(first, second, doubt).tolist()
    for row, preference in enumerate(out):
        if math.isnan(preference):
            raise LabError(
                f"The reward of comparison {row} is not a number ({first[row].item()} against {second[row].item()})."
            )
    return out


class GoldJudge:
    """Prefers the text with the larger gold reward.

    Attributes:
        gold: `world.gold`, a function of (prompts, responses), one number each.
        tie: differences of at most this are ties, as are those within rounding of the largest score of a call.
    """

    order_free = True

    def __init__(self, gold: Callable[[Sequence[str], Sequence[str]], Sequence[float]], tie: float = 0.0) -> None:
        self.gold, self.tie = gold, tie

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """See `Judge`."""
        check_texts(prompts, a, b)
        scores = self.gold([*prompts, *prompts], [*a, *b])
        if len(scores) != 2 * len(a):
            raise LabError(f"The gold reward returned {len(scores)} scores for {2 * len(a)} texts.")
        values = torch.tensor([float(score) for score in scores], dtype=torch.float64)
        # A gold reward is a sum of parts, whose rounding a small result does not show; the largest result does.
        doubt = rounding(values.abs().amax() if len(values) else 0.0) + self.tie
        return _preferences(values[: len(a)], values[len(a) :], doubt)


class RewardJudge:
    """Prefers the text to which a reward model gives the larger score.

    The texts get the token ids that the reward model was trained on, by the rules of `data.preferences.tokenise`. The
    prompt begins with the token with which the tokenizer opens a text, if there is one, and contains it once. The
    response ends with the end token. After a prompt that a chat template wrote, this is the token with which the
    template closes a turn.

    Attributes:
        reward: scores (B, G) of token ids, for example a `LanguageModelReward`.
        tokenizer: the tokenizer of the reward model.
        batch_size: how many comparisons are scored at the same time.
        tie: scores that differ by at most this are tied, and so are scores that are equal within rounding.
    """

    order_free = True
    special_tokens = True

    def __init__(self, reward: Reward, tokenizer: Any, batch_size: int = 32, tie: float = 0.0) -> None:
        self.reward, self.tokenizer, self.batch_size, self.tie = reward, tokenizer, batch_size, tie

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """See `Judge`."""
        check_texts(prompts, a, b)
        opening, ends = opening_of(self.tokenizer), ends_of(self.tokenizer, self.tokenizer.eos_token_id)
        out: list[float] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            asked, ones, others = (ids_of(list(texts[rows]), self.tokenizer) for texts in (prompts, a, b))
            asked = [ids if ids[: len(opening)] == opening else opening + ids for ids in asked]
            answers = [[self._ended(y, x, ends) for y in pair] for x, *pair in zip(asked, ones, others, strict=True)]
            scores = self.reward(Tokens.from_lists(asked), Tokens.from_lists(answers)).cpu().clone()
            same = torch.tensor([one == other for one, other in zip(a[rows], b[rows], strict=True)])
            # The scores of the same text at two places of a batch may differ in more than the last digits.
            scores[:, 1] = torch.where(same, scores[:, 0], scores[:, 1])
            one, other = scores.unbind(1)
            out += _preferences(one, other, rounding(one, other, units=MANY) + self.tie)
        return out

    def _ended(self, response: list[int], prompt: list[int], ends: list[int]) -> list[int]:
        """The ids of a response with one end token."""
        # A prompt that a chat template wrote contains the token that closes the user's turn.
        templated = len(ends) > 1 and ends[-1] in prompt
        ids, end = split_end(response, ends, templated, self.tokenizer)
        return ids + end


QUESTION = """\
Below are a request and two responses to it. Which response is better: more helpful, more correct, and written \
the way the request asks for?

### Request
{prompt}

### Response A
{a}

### Response B
{b}

### Verdict
Answer with one word: A, B, or tie."""
"""What a model behind an endpoint is asked, unless another template is given."""

_VERDICT = re.compile(r"(?:(?:the )?(?:better )?(?:response|answer|verdict|choice)(?: is)?\s*:?\s*)?(a|b|tie)", re.I)
_RETRY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0


def read_verdict(answer: str) -> float | None:
    """1 for A, 0 for B, ½ for a tie, read from the answer's last line; None if it says none of them."""
    lines = [line for line in answer.splitlines() if line.strip()]
    found = _VERDICT.fullmatch(lines[-1].strip(" \t*_`#\"'[]()<>.:!")) if lines else None
    return None if found is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[found[1].lower()]


class EndpointJudge:
    """Asks a model behind any OpenAI-compatible URL.

    Answers are kept in a file of JSON lines, each under a hash of model and question, and written when they come:
    an interrupted run goes on where it stopped. The key is read from an environment variable when a request
    is made. It is held nowhere, written nowhere, sent to no other host (redirects are refused) and over no
    unencrypted line, and cut out of whatever the server says before it is shown.

    Attributes:
        url: of the service, e.g. https://api.openai.com/v1 or http://localhost:8000/v1.
        model: the name that the service knows it by.
        unanswered: questions so far whose answer held no verdict.
    """

    order_free = False

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = "OPENAI_API_KEY",
        cache: Path | str | None = None,
        question: str = QUESTION,
        timeout: float = 60.0,
        tries: int = 5,
        pause: float = 1.0,
        workers: int = 4,
        max_tokens: int = 16,
        extra: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: with or without the /chat/completions at its end.
            model: the model's name.
            key_variable: environment variable that holds the key. None, or a variable that is not set: no key is sent.
            cache: file for the answers; None keeps none.
            question: template with {prompt}, {a} and {b}; the answer must end in a line A, B or tie.
            timeout: seconds to wait for one answer.
            tries: attempts for one question.
            pause: seconds before the second attempt; doubled each time, unless the server names a time.
            workers: questions under way at once.
            max_tokens: longest answer asked for.
            extra: further fields of the request, e.g. {"seed": 0}; they replace the lab's own.
            progress: show a progress bar.

        Raises:
            LabError: a URL that is none, or holds a password; a template without its places; numbers below 1.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LabError("The judge's url must begin with https:// (or http:// on this machine) and name a host.")
        if parts.username or parts.password or parts.query:
            raise LabError(
                f"The url of {parts.hostname} holds a password or a query, which would end in logs. Put the key into "
                f"an environment variable and name it by key_variable."
            )
        missing = [name for name in ("{prompt}", "{a}", "{b}") if name not in question]
        if missing:
            raise LabError(f"The question lacks {', '.join(missing)}, where the texts go.")
        if tries < 1 or workers < 1 or max_tokens < 1 or not timeout > 0 or not pause >= 0:
            raise LabError("tries, workers and max_tokens must be at least 1, timeout above 0, pause not below 0.")
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.host, self.model, self.key_variable, self.question = parts.netloc, model, key_variable, question
        self.timeout, self.tries, self.pause, self.workers = timeout, tries, pause, workers
        self.max_tokens, self.extra, self.progress = max_tokens, dict(extra or {}), progress
        self.cache = None if cache is None else check_path(cache, "cache")
        self.unanswered = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._mended = False
        self._known = self._read_cache()
        local = parts.hostname == "localhost" or parts.hostname == "::1" or parts.hostname.startswith("127.")
        if parts.scheme == "http" and not local and self._key():
            raise LabError(
                f"{self.host} is asked over http, which would send the key in ${key_variable} unencrypted. Use https, "
                f"or key_variable=None if the service needs no key."
            )

    def __repr__(self) -> str:
        return f"EndpointJudge({self.url!r}, {self.model!r})"

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """See `Judge`; a is shown first. What the cache knows is not asked again.

        Raises:
            LabError: the service cannot be reached, refuses, or answers in another form than the protocol's; a
                fifth or more of the answers (two at least, where there are two) hold no verdict. What was answered
                before stays in the cache.
        """
        check_texts(prompts, a, b)
        questions = [self._fill(*texts) for texts in zip(prompts, a, b, strict=True)]
        keys = [self._hash(question) for question in questions]
        todo = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._known}
        if todo:
            self._ask_all(todo)
        verdicts = [read_verdict(self._known[key]) for key in keys]
        without = [key for key, verdict in zip(keys, verdicts, strict=True) if verdict is None]
        self.unanswered += len(without)
        if without and len(without) >= max(len(keys) / 5, min(2, len(keys))):
            raise LabError(
                f"{len(without)} of {len(keys)} answers of {self.model} at {self.host} hold no verdict; one is "
                f"{self._known[without[0]][:80]!r}. Its last line must be A, B or tie: raise max_tokens for a model "
                f"that thinks aloud, or change the question (and the cache file)."
            )
        return [float("nan") if verdict is None else verdict for verdict in verdicts]

    def _fill(self, prompt: str, a: str, b: str) -> str:
        # One pass, so that a text that itself holds "{a}" stays as it is.
        texts = {"{prompt}": prompt, "{a}": a, "{b}": b}
        return re.sub(r"\{prompt\}|\{a\}|\{b\}", lambda found: texts[found[0]], self.question)

    def _hash(self, question: str) -> str:
        what = json.dumps([self.model, self.max_tokens, self.extra, question], sort_keys=True, default=str)
        return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()

    def _read_cache(self) -> dict[str, str]:
        if self.cache is None or not self.cache.exists():
            return {}
        known = {}
        # What stands behind the last line's end is half a line of a run that was killed: asked again.
        for number, line in enumerate(self.cache.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                known[row["key"]] = str(row["answer"])
            except (json.JSONDecodeError, KeyError, TypeError):
                raise LabError(f"{self.cache}, line {number}, is no answer of a judge. Give another file.") from None
        return known

    def _write(self, key: str, answer: str) -> None:
        with self._lock:
            self._known[key] = answer
            if self.cache is None:
                return
            if not self._mended:
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                with self.cache.open("a+b") as file:
                    # A run that was killed may have left half a line, which the next one must not be glued to.
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
                self._mended = True
            with self.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "model": self.model, "answer": answer}) + "\n")

    def _ask_all(self, todo: Mapping[str, str]) -> None:
        self._stop.clear()
        pool = ThreadPoolExecutor(self.workers)
        bar = tqdm(total=len(todo), desc=f"asking {self.model}", leave=False, disable=not self.progress)
        try:
            asked = {pool.submit(self._ask, question): key for key, question in todo.items()}
            for done in as_completed(asked):
                self._write(asked[done], done.result())
                bar.update()
        finally:
            # The first error, or Ctrl-C, ends the others too: those not begun never start, waits are cut short.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _ask(self, question: str) -> str:
        """One question's answer; asked again where that may help: overload, silence, an answer without verdict."""
        trouble, answer, wait = "", "", self.pause
        for attempt in range(self.tries):
            if attempt and self._stop.wait(min(wait, _LONGEST_WAIT)):
                break
            wait = self.pause * 2**attempt
            try:
                answer = self._post(question)
            except urllib.error.HTTPError as error:
                with error:
                    said = self._clean(error.read(2000).decode("utf-8", "replace"))
                if error.code not in _RETRY:
                    raise LabError(self._refused(error.code, said)) from None
                trouble, wait = f"it answered {error.code}", max(wait, _seconds(error.headers.get("Retry-After")))
            except (OSError, EOFError) as error:  # no connection, a time-out, a line cut
                reason = getattr(error, "reason", error)
                trouble = "no answer in time" if isinstance(reason, TimeoutError) else self._clean(str(reason))
            except http.client.HTTPException as error:
                trouble = f"the connection broke ({type(error).__name__})"
            else:
                if read_verdict(answer) is not None:
                    return answer
                trouble = ""
        if trouble:
            raise LabError(
                f"The judge at {self.host} gave no answer in {self.tries} tries of {self.timeout:g} s ({trouble}). "
                + (f"What was answered is in {self.cache}; run again to go on." if self.cache else "Is it running?")
            )
        return answer

    def _post(self, question: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "rlhf-lab"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        with _opener().open(request, timeout=self.timeout) as reply:
            raw = reply.read(10_000_000)
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            said = self._clean(raw[:80].decode("utf-8", "replace"))
            raise LabError(
                f"{self.host} does not answer as /v1/chat/completions does (its reply begins {said!r}). Check the url."
            ) from None
        return self._clean("" if content is None else str(content), limit=10_000)

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _clean(self, text: str, limit: int = 200) -> str:
        """What a server said, without the key that it may have echoed."""
        key = self._key()
        return (text.replace(key, "[key]") if key else text)[:limit].strip()

    def _refused(self, code: int, said: str) -> str:
        mend = f" Check the url, and the name of the model, {self.model}."
        if code in (401, 403):
            # What the server says of a wrong key often shows a part of it.
            said, mend = "", f" Check the key in ${self.key_variable}." if self.key_variable else " It wants a key."
        elif 300 <= code < 400:
            said, mend = "", " It redirects; give the address to which it does."
        return f"The judge at {self.host} refused the request ({code}{': ' + said if said else ''}).{mend}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Following one would send the key along."""

    def redirect_request(self, *ignored: Any) -> None:
        """Never: the redirect then shows as an `HTTPError`."""
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
