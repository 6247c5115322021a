r"""Judges, which compare two responses to a prompt: a gold reward, a reward model, or a language model behind a URL.

    judge(prompts, a, b) → preferences for a, each in [0, 1], ½ for a tie, NaN for no usable answer

A gold reward and a reward model score each text separately, so the order of the texts cannot matter. A language model
may prefer the response that is shown first. `rlhf_lab.evaluation.win_rate` therefore uses it in both orders, averages
the results, and reports the bias (Zheng et al. 2023, "Judging LLM-as-a-judge", section 3.3; Rafailov et al. 2023 used
such judges in section 6).
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
from rlhf_lab.errors import LabError, check_path, count_of
from rlhf_lab.policies.base import Reward
from rlhf_lab.rounding import MANY, rounding, wins


class Judge(Protocol):
    """A function that compares two texts.

    A judge may have the attribute `special_tokens`. If it is True, `text_report` passes prompts with their special
    tokens to the judge.

    Attributes:
        order_free: whether judge(x, a, b) = 1 − judge(x, b, a) by construction.
    """

    order_free: bool

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """The preference for each response in `a` over that in `b`, in [0, 1]; ½ for a tie, NaN for no answer."""
        ...


def check_texts(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> None:
    """Raise `LabError` unless there are as many prompts as responses on both sides."""
    if not len(prompts) == len(a) == len(b):
        raise LabError(
            f"{count_of(len(prompts), 'prompt')} came with {len(a)} and {len(b)} responses. Give one per prompt."
        )


def _preferences(first: Tensor, second: Tensor, doubt: Tensor) -> list[float]:
    out = wins(first, second, doubt).tolist()
    for row, preference in enumerate(out):
        if math.isnan(preference):
            raise LabError(
                f"A reward of comparison {row} is not a number ({first[row].item()} against {second[row].item()})."
            )
    return out


class GoldJudge:
    """Prefers the text with the larger gold reward.

    Attributes:
        gold: a function of prompts and responses, such as `world.gold`, with one number per response.
        tie: scores that differ by at most this are tied, and so are scores that are equal within rounding.
    """

    order_free = True

    def __init__(self, gold: Callable[[Sequence[str], Sequence[str]], Sequence[float]], tie: float = 0.0) -> None:
        self.gold, self.tie = gold, tie

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """See `Judge`."""
        check_texts(prompts, a, b)
        scores = self.gold([*prompts, *prompts], [*a, *b])
        if len(scores) != 2 * len(a):
            raise LabError(f"The gold reward returned {count_of(len(scores), 'score')} for {2 * len(a)} texts.")
        values = torch.tensor([float(score) for score in scores], dtype=torch.float64)
        # A gold reward is a sum of parts. The rounding error depends on the parts, so the largest score of the call
        # estimates it better than the two scores of a comparison.
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
"""The question for a model behind a URL, unless another template is given."""

_VERDICT = re.compile(r"(?:(?:the )?(?:better )?(?:response|answer|verdict|choice)(?: is)?\s*:?\s*)?(a|b|tie)", re.I)
_RETRY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0


def read_verdict(answer: str) -> float | None:
    """Read the verdict from an answer's last line: 1 for A, 0 for B, ½ for a tie; None if there is no verdict."""
    lines = [line for line in answer.splitlines() if line.strip()]
    found = _VERDICT.fullmatch(lines[-1].strip(" \t*_`#\"'[]()<>.:!")) if lines else None
    return None if found is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[found[1].lower()]


class EndpointJudge:
    """Compares texts by a language model behind any URL with OpenAI's protocol.

    Each answer is saved in a file of JSON lines as soon as it arrives, with a hash of the model and the question. A run
    that was interrupted therefore continues where it stopped. The API key is read from an environment variable for each
    request. It is never stored or written. It is not sent to another host, because redirects are refused, and not over
    an unencrypted connection. It is removed from the server's messages before they are shown.

    Attributes:
        url: the URL of the service, for example https://api.openai.com/v1 or http://localhost:8000/v1.
        model: the name of the model at the service.
        unanswered: the number of questions that got an answer without a verdict.
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
        """Check the settings. No request is sent yet.

        Args:
            url: URL of the service, with or without /chat/completions at the end.
            model: name of the model.
            key_variable: environment variable with the API key. No key is sent if it is None or not set.
            cache: file for the answers; None saves none.
            question: template with {prompt}, {a} and {b}. The last line of the answer must be A, B or tie.
            timeout: seconds to wait for an answer.
            tries: maximum number of attempts for one question.
            pause: seconds before the second attempt. The pause is doubled each time, or the server sets it.
            workers: number of simultaneous requests.
            max_tokens: maximum length of an answer in tokens.
            extra: further fields of the request, for example {"seed": 0}. They replace the default fields.
            progress: show a progress bar.

        Raises:
            LabError: the URL is invalid or contains a password; the template lacks one of its fields; a number is out
                of range.
        """
        parts = _url_parts(url)
        missing = [name for name in ("{prompt}", "{a}", "{b}") if name not in question]
        if missing:
            raise LabError(f"The question lacks {', '.join(missing)}. The texts are inserted there.")
        if tries < 1 or workers < 1 or max_tokens < 1 or not timeout > 0 or not pause >= 0:
            raise LabError("tries, workers and max_tokens must be at least 1, timeout above 0, and pause not negative.")
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.host, self.model, self.key_variable, self.question = parts.netloc, model, key_variable, question
        self.timeout, self.tries, self.pause, self.workers = timeout, tries, pause, workers
        self.max_tokens, self.extra, self.progress = max_tokens, dict(extra or {}), progress
        self.cache = None if cache is None else check_path(cache, "cache")
        self.unanswered = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._trimmed = False
        self._known = self._read_cache()
        if parts.scheme == "http" and not _is_this_machine(parts.hostname) and self._key():
            raise LabError(
                f"The connection to {self.host} uses http, which would send the key in ${key_variable} unencrypted. "
                f"Use https, or key_variable=None if the service needs no key."
            )

    def __repr__(self) -> str:
        return f"EndpointJudge({self.url!r}, {self.model!r})"

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """See `Judge`. The responses in `a` are shown first. Questions whose answers are saved are not sent again.

        Raises:
            LabError: the service cannot be reached, refuses the request, or does not follow the protocol; or at least a
                fifth of the answers (and at least two, if there are two) contain no verdict. Earlier answers are saved.
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
                f"{len(without)} of {len(keys)} answers of {self.model} at {self.host} contain no verdict; one is "
                f"{self._known[without[0]][:80]!r}. The last line must be A, B or tie. Raise max_tokens for a model "
                f"that reasons before it answers, or change the question (and the cache file)."
            )
        return [float("nan") if verdict is None else verdict for verdict in verdicts]

    def _fill(self, prompt: str, a: str, b: str) -> str:
        # Replaced in one pass, so that a text that contains "{a}" is not changed.
        texts = {"{prompt}": prompt, "{a}": a, "{b}": b}
        return re.sub(r"\{prompt\}|\{a\}|\{b\}", lambda found: texts[found[0]], self.question)

    def _hash(self, question: str) -> str:
        what = json.dumps([self.model, self.max_tokens, self.extra, question], sort_keys=True, default=str)
        return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()

    def _read_cache(self) -> dict[str, str]:
        if self.cache is None or not self.cache.exists():
            return {}
        known = {}
        # Text after the last line break is an incomplete line of a run that was killed. Its question is sent again.
        for number, line in enumerate(self.cache.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                known[row["key"]] = str(row["answer"])
            except (json.JSONDecodeError, KeyError, TypeError):
                raise LabError(
                    f"{self.cache}, line {number}, is not a saved answer of a judge. Give another file."
                ) from None
        return known

    def _write(self, key: str, answer: str) -> None:
        with self._lock:
            self._known[key] = answer
            if self.cache is None:
                return
            if not self._trimmed:
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                with self.cache.open("a+b") as file:
                    # A run that was killed may have left an incomplete line, which is removed.
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
                self._trimmed = True
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
            # The first error or Ctrl-C also ends the other requests: none is started, and pauses end.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _ask(self, question: str) -> str:
        """Return the answer to a question. Try again after an overload, a time-out or an answer without a verdict."""
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
            except (OSError, EOFError) as error:  # no connection, a time-out, a broken connection
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
                f"The judge at {self.host} gave no answer in {self.tries} attempts of {self.timeout:g} s ({trouble}). "
                + (f"Earlier answers are in {self.cache}. Run again to continue." if self.cache else "Is it running?")
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
                f"The reply of {self.host} is not one of /v1/chat/completions (it begins {said!r}). Check the url."
            ) from None
        return self._clean("" if content is None else str(content), limit=10_000)

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _clean(self, text: str, limit: int = 200) -> str:
        """A server's message without the key, which it may contain."""
        key = self._key()
        return (text.replace(key, "[key]") if key else text)[:limit].strip()

    def _refused(self, code: int, said: str) -> str:
        fix = f" Check the url, and the name of the model, {self.model}."
        if code in (401, 403):
            # A server's message about a wrong key often contains a part of it.
            said, fix = "", f" Check the key in ${self.key_variable}." if self.key_variable else " It needs a key."
        elif 300 <= code < 400:
            said, fix = "", " It redirects to another address. Give that address."
        return f"The judge at {self.host} refused the request ({code}{': ' + said if said else ''}).{fix}"


def _url_parts(url: str) -> urllib.parse.SplitResult:
    """The parts of a service's URL, which names a host and contains no secret."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LabError("The judge's url must begin with https:// (or http:// on this machine) and name a host.")
    if parts.username or parts.password or parts.query:
        raise LabError(
            f"The url of {parts.hostname} contains a password or a query, which would be written to logs. Put the "
            f"key into an environment variable, and give its name as key_variable."
        )
    return parts


def _is_this_machine(host: str | None) -> bool:
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because following one would send the key to another host."""

    def redirect_request(self, *ignored: Any) -> None:
        """Return None, so that the redirect becomes an `HTTPError`."""
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
