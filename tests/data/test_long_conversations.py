"""Conversations that are too long: what is cut and what never is. Conversations in which every answer is trained on.

The tokenizer has one id a letter and one id for each marker, so lengths are counted by hand. A turn of the user with n
letters has n + 8 tokens (<|im_start|>, "user" and a new line, the letters, <|im_end|>, a new line), one of the system
n + 10, one of the assistant n + 13, one of a tool n + 8; the opening of the answer has 11.
"""

import json

import pytest
from tiny_models import chat_tokenizer, tiny_tokenizer

from rlhf_lab.data import loading, token_store
from rlhf_lab.data.conversations import (
    LOST_BEGINNING,
    LOST_TURNS,
    NO_ROOM,
    Written,
    shortened,
    split_at_answers,
    write_turns,
)
from rlhf_lab.data.loading import load_rows
from rlhf_lab.data.preferences import HOLDS_END, TOO_LONG, Encoder, PreferenceTexts, examples_of, tokenise
from rlhf_lab.data.sft import TargetTexts, tokenise_prompts, tokenise_targets
from rlhf_lab.errors import LabError


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


SYSTEM = turn("system", "S!")
TURNS = [SYSTEM, turn("user", "aa"), turn("assistant", "bb"), turn("user", "cccc")]
OPENING = "<|im_start|>assistant\n"


def written(*turns: dict) -> str:
    return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in turns)


def cut(turns: list[dict], limit: int, continued: bool = False, tokenizer=None) -> tuple[str, int, tuple[str, ...]]:
    """The text of a prompt that was cut, the number of its tokens, and what it has lost."""
    tokenizer = tokenizer or chat_tokenizer()
    prompt = write_turns(turns, tokenizer, continued=continued)
    assert isinstance(prompt, Written)
    encoded = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert len(encoded(prompt)) > limit
    ids, lost = shortened(prompt, tokenizer, encoded, limit)
    return tokenizer.decode(ids), len(ids), lost


@pytest.mark.parametrize(
    ("limit", "kept", "number", "lost"),
    [
        (59, [SYSTEM, TURNS[3]], 35, (LOST_TURNS,)),
        (35, [SYSTEM, TURNS[3]], 35, (LOST_TURNS,)),
        (34, [SYSTEM, turn("user", "ccc")], 34, (LOST_TURNS, LOST_BEGINNING)),
        (32, [SYSTEM, turn("user", "c")], 32, (LOST_TURNS, LOST_BEGINNING)),
    ],
)
def test_oldest_exchanges_go_first_and_then_the_beginning_of_the_oldest_text(limit, kept, number, lost):
    """12 + 10 + 15 + 12 + 11 = 60 tokens; without the first exchange 12 + 12 + 11 = 35."""
    assert cut(TURNS, limit) == (written(*kept) + OPENING, number, lost)


def test_where_the_system_s_turn_and_the_markers_leave_no_room_the_row_is_dropped_with_that_reason():
    """12 for the system, 8 for the user's markers, 11 for the opening: 31, and not one letter more."""
    assert cut(TURNS, 31) == ("", 0, (NO_ROOM,))


def test_an_exchange_is_as_little_as_needed_and_goes_with_all_its_turns():
    """Four exchanges of 10 + 15 tokens and a last question of 9: of 100 + 9 + 11 = 120 tokens, 94 remain after one and
    70 after two. The call of a tool and its result go with the question that they belong to."""
    exchange = [turn("user", "aa"), turn("assistant", "bb")]
    many = [*exchange * 4, turn("user", "c")]
    for limit, left in ((119, 3), (95, 3), (94, 2), (70, 2), (69, 1)):
        text, _, lost = cut(many, limit)
        assert text == written(*exchange * left, turn("user", "c")) + OPENING and lost == (LOST_TURNS,)
    tools = [turn("user", "a"), turn("assistant", "x"), turn("tool", "y"), turn("assistant", "z"), turn("user", "c")]
    assert cut(tools, 40)[0] == written(turn("user", "c")) + OPENING


def test_an_answer_that_was_begun_stays_whole_and_open():
    """The prompt ends within the assistant's turn: 10 for the question, 11 + 3 for the beginning of the answer."""
    begun = [turn("user", "ba"), turn("assistant", "The")]
    text, number, lost = cut(begun, 23, continued=True)
    assert (text, number, lost) == (written(turn("user", "a")) + OPENING + "The", 23, (LOST_BEGINNING,))


def test_an_answer_that_was_begun_stays_open_when_older_turns_go():
    begun = [turn("user", "old"), turn("assistant", "old"), turn("user", "aa"), turn("assistant", "The")]
    assert cut(begun, 24, continued=True)[0] == written(turn("user", "aa")) + OPENING + "The"


def test_an_opening_token_stays_once_at_the_beginning():
    tokenizer = chat_tokenizer(bos=True)
    text, number, _ = cut(TURNS, 36, tokenizer=tokenizer)
    assert text == "<s>" + written(SYSTEM, TURNS[3]) + OPENING and number == 36


def test_without_a_template_the_markers_of_the_dialogue_stay():
    """One id a letter: "S!" 2, "\\n\\nHuman: cccc" 13, "\\n\\nAssistant:" 12."""
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    assert cut(TURNS, 27, tokenizer=tokenizer)[:2] == ("S!\n\nHuman: cccc\n\nAssistant:", 27)
    assert cut(TURNS, 25, tokenizer=tokenizer)[:2] == ("S!\n\nHuman: cc\n\nAssistant:", 25)


def test_a_long_text_is_cut_to_exactly_the_limit():
    """Whatever the length: 8 tokens of markers, 11 of the opening, and the rest for the text."""
    for number in (1, 2, 3, 63, 64, 65, 1000):
        text, length, _ = cut([turn("user", "x" * 1001)], 19 + number)
        assert text == written(turn("user", "x" * number)) + OPENING and length == 19 + number


def test_pairs_targets_and_prompts_are_cut_alike_and_the_report_says_how():
    tokenizer = chat_tokenizer()
    end = tokenizer.eos_token_id
    prompts = [write_turns(TURNS, tokenizer), write_turns([SYSTEM, turn("user", "x" * 40)], tokenizer), "plain text"]
    expected = [written(SYSTEM, TURNS[3]) + OPENING, written(SYSTEM, turn("user", "xxxx")) + OPENING, "plain text"]
    pairs, one = tokenise(PreferenceTexts(prompts, ["y"] * 3, ["n"] * 3), tokenizer, 35, 2, end)
    targets, _, _, two = tokenise_targets(TargetTexts(prompts, ["y"] * 3), tokenizer, 35, 2, end)
    alone, three = tokenise_prompts(prompts, tokenizer, 35)
    for found in (pairs.prompts, targets, alone):
        assert [tokenizer.decode(ids) for ids in found.tolist()] == expected
    for report in (one, two, three):
        assert report.truncated_prompts == 2 and report.cuts == {LOST_TURNS: 1, LOST_BEGINNING: 1}
        assert "truncated (prompts: lost the beginning of a turn (1), lost whole turns (1))" in report.summary()


def test_a_plain_prompt_loses_its_beginning_and_a_conversation_that_cannot_be_cut_is_dropped():
    tokenizer = chat_tokenizer()
    prompts = ["x" * 40, write_turns(TURNS, tokenizer)]
    found, report = tokenise_prompts(prompts, tokenizer, 31)
    assert [tokenizer.decode(ids) for ids in found.tolist()] == ["x" * 31]
    assert report.dropped == {NO_ROOM: 1} and "(prompts:" not in report.summary()
    dropped = tokenise_prompts([*prompts, "short"], tokenizer, 31, too_long="drop")[1]
    assert dropped.dropped == {TOO_LONG: 2}


# --- the loss of all answers -----------------------------------------------------------------------------------------


def marked(turns: list[dict], tokenizer, limits=(None, None), too_long="cut", continued=False, answer="dd"):
    """A conversation in which all answers are trained on: its prompt, the rest with [the trained parts], the report."""
    prompt = write_turns(turns, tokenizer, continued=continued)
    encoder = Encoder("example", tokenizer, *limits, tokenizer.eos_token_id, too_long, "all")
    found = encoder.encode(examples_of([(prompt, answer)], [tokenizer.chat_template is not None]))
    if not found.kept:
        return dict(encoder.dropped)
    shown, before = "", False
    for token, trained in zip(found.responses[0][0], found.trained[0], strict=True):
        shown += ("[" if trained else "]") * (trained != before) + tokenizer.decode([token])
        before = trained
    return tokenizer.decode(found.prompts[0]), shown + "]" * before, encoder.report("test")


THREE = [turn("user", "a"), turn("assistant", "bb"), turn("user", "c")]
OPEN, CLOSE = "<|im_start|>", "<|im_end|>"


def test_every_answer_with_its_end_token_is_trained_on_and_nothing_else():
    """Written out by hand from the template: after the end of a turn a new line follows, which no model samples."""
    prompt, rest, _ = marked([SYSTEM, *THREE], chat_tokenizer())
    assert prompt == written(SYSTEM, turn("user", "a")) + OPENING
    assert rest == f"[bb{CLOSE}]\n{OPEN}user\nc{CLOSE}\n{OPENING}[dd{CLOSE}]"


def test_without_a_template_answers_are_marked_without_an_end_and_the_last_one_with_it():
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    expected = "[ bb]\n\nHuman: c\n\nAssistant:[ dd<end>]"
    assert marked(THREE, tokenizer, answer=" dd")[:2] == ("\n\nHuman: a\n\nAssistant:", expected)
    parts = split_at_answers("\n\nHuman: a\n\nAssistant: bb\n\nHuman: c\n\nAssistant:", tokenizer, "")
    assert parts == ["\n\nHuman: a\n\nAssistant:", " bb", "\n\nHuman: c\n\nAssistant:"]
    assert split_at_answers("a plain prompt", tokenizer, "") == ["a plain prompt"]


def test_a_turn_that_was_begun_and_an_empty_one_are_not_trained_on():
    begun = [*THREE, turn("assistant", "The ")]
    _, rest, _ = marked(begun, chat_tokenizer(), continued=True)
    assert rest == f"[bb{CLOSE}]\n{OPEN}user\nc{CLOSE}\n{OPENING}The [dd{CLOSE}]"
    silent = [turn("user", "a"), turn("assistant", " "), turn("user", "b"), turn("assistant", "c"), turn("user", "d")]
    prompt, rest, _ = marked(silent, chat_tokenizer())
    assert prompt == written(*silent[:3]) + OPENING and rest.startswith(f"[c{CLOSE}]\n") and rest.count("[") == 2


CALLS = (
    "{% if tools %}{{ tools[0].function.name }};{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.tool_calls %}call {{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_call_of_a_tool_is_an_answer_too_and_the_tools_stay_in_front():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = CALLS
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w", "arguments": {}}}]}
    turns = [turn("user", "a"), call, turn("tool", "sun")]
    prompt = write_turns(turns, tokenizer, tools=[{"function": {"name": "w"}}])
    end = CLOSE
    assert split_at_answers(prompt, tokenizer, end) == [
        f"w;{OPEN}user\na{CLOSE}\n{OPENING}",
        f"call w{CLOSE}",
        f"\n{OPEN}tool\nsun{CLOSE}\n{OPENING}",
    ]


@pytest.mark.parametrize(
    "template",
    [
        # earlier answers are left out, and the last turn is written differently
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}<{{ m.role }}>{{ m.content }}{% endif %}"
        "{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_named_with_the_row_and_the_fix(template, tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template + "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.name_or_path = "some/model"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [turn("user", "a"), turn("assistant", "b")]}) + "\n")
    with path.open("a") as file:
        file.write(json.dumps({"messages": [*THREE, turn("assistant", "dd")]}) + "\n")
    arguments = ("targets", str(path), tokenizer, None, None, tokenizer.eos_token_id, tmp_path)
    assert len(load_rows(*arguments).rows.prompts) == 2
    message = r"rows\.jsonl, line 2: the chat template of some/model writes turn 2.*Use --train-on last, or set"
    with pytest.raises(LabError, match=message):
        load_rows(*arguments, train_on="all")


def test_one_answer_is_what_the_last_answer_alone_is_with_every_limit():
    """The same ids as with `last`, and every one of them trained on, also where prompt and answer are cut."""
    tokenizer = chat_tokenizer()
    prompt = write_turns([SYSTEM, turn("user", "a" * 20)], tokenizer)
    for limits in ((None, None), (40, 6), (40, 100)):
        one = Encoder("example", tokenizer, *limits, tokenizer.eos_token_id, "cut", "all")
        found = one.encode(examples_of([(prompt, "b" * 9)], [True]))
        two = Encoder("example", tokenizer, *limits, tokenizer.eos_token_id, "cut")
        assert found[:3] == two.encode(examples_of([(prompt, "b" * 9)], [True]))[:3]
        assert found.trained == [[True] * len(found.responses[0][0])] and one.report("a") == two.report("a")


def test_the_limit_of_a_conversation_is_the_sum_of_both_and_the_oldest_exchanges_go():
    """Two exchanges of 9 + 15 tokens, a question of 9, the opening of 11 and an answer of 3: 71 in all, 47 without the
    first exchange, 23 without both. Of 23 only one answer is left, which is trained on as with `last`."""
    tokenizer = chat_tokenizer()
    turns = [*THREE[:2], *THREE]
    for limits in ((40, 31), (60, 11)):
        assert marked(turns, tokenizer, limits)[2].cuts == {}
    for limits in ((40, 30), (27, 20)):
        prompt, rest, report = marked(turns, tokenizer, limits)
        assert (
            prompt == written(turn("user", "a")) + OPENING and rest.count("[") == 2 and report.cuts == {LOST_TURNS: 1}
        )
    prompt, rest, report = marked(turns, tokenizer, (26, 20))
    assert prompt == written(turn("user", "c")) + OPENING and rest == f"[dd{CLOSE}]" and report.truncated_prompts == 1
    assert marked(turns, tokenizer, (40, 30), "drop") == {TOO_LONG: 1}
    assert marked(turns, tokenizer, (68, 3), "drop")[2].cuts == {}


def test_an_end_token_within_an_earlier_answer_drops_the_row():
    inside = [turn("user", "a"), turn("assistant", f"b{CLOSE}b"), turn("user", "c")]
    assert marked(inside, chat_tokenizer()) == {HOLDS_END: 1}


def test_stored_conversations_are_those_in_memory(tmp_path, monkeypatch):
    tokenizer = chat_tokenizer()
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [*(THREE[:2] * n), THREE[0], turn("assistant", "d" * (n + 1))]} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("targets", str(path), tokenizer, None, None, tokenizer.eos_token_id, tmp_path / "ids")
    small = load_rows(*arguments, train_on="all").rows
    monkeypatch.setattr(loading, "IN_MEMORY", 1)
    monkeypatch.setattr(loading, "CHUNK", 2)
    for _ in ("written", "read"):
        large = load_rows(*arguments, train_on="all").rows
        assert large.trained.tolist() == small.trained.tolist() and large.responses.tolist() == small.responses.tolist()
        assert [sum(marks[0]) for marks in large.trained.tolist()] == [3 * n + n + 2 for n in range(5)]
        assert large.trained.mask.equal(large.responses.mask)
    assert load_rows(*arguments).rows.trained is None
    twice = token_store.join([small, large])
    assert twice.trained.tolist() == small.trained.tolist() * 2
