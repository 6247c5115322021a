"""Targets, prompts and labelled responses: each form, each reason for dropping a row."""

import json

import pytest
from tiny_models import tiny_tokenizer

from rlhf_lab.data import formats as forms
from rlhf_lab.data import sft as data
from rlhf_lab.data.preferences import HOLDS_END, REPEATED, load_preferences
from rlhf_lab.data.readers import Source
from rlhf_lab.data.sft import UNDESIRABLE, TargetTexts, load_labelled, load_prompts, load_targets, tokenise_targets
from rlhf_lab.errors import LabError

POST = {"post": "My cat sat.", "title": "Cat", "subreddit": "pets", "id": "t3_1"}
POST_PROMPT = "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat sat.\n\nTL;DR:"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
DIALOGUE = "\n\nHuman: Hi\n\nAssistant:"


def lines(tmp_path, *rows: dict) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", data.TARGETS)
def test_a_target_s_column_may_have_any_of_its_usual_names(tmp_path, name):
    texts = load_targets(lines(tmp_path, {"prompt": "a", name: " b"}))
    assert (texts.prompts, texts.targets) == (["a"], [" b"])


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"messages": TURNS}, DIALOGUE, " Yes?"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, DIALOGUE, " Yes?"),
        (POST | {"summary": " Cat sat."}, POST_PROMPT, " Cat sat."),
        (POST | {"summary": "Cat sat."}, POST_PROMPT, " Cat sat."),
        ({"chosen": f"{DIALOGUE} Yes?", "rejected": f"{DIALOGUE} No."}, DIALOGUE, " Yes?"),
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, "a", " b"),
        ({"info": POST, "summaries": [{"text": " x"}, {"text": " y"}], "choice": 1}, POST_PROMPT, " y"),
    ],
)
def test_each_form_gives_its_prompt_and_target(tmp_path, row, prompt, target):
    texts = load_targets(lines(tmp_path, row))
    assert (texts.prompts, texts.targets) == ([prompt], [target])
    assert load_prompts(lines(tmp_path, row)).prompts == [prompt]


def test_rows_without_a_target_are_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": " ", "completion": "b"},
        {"prompt": "a", "completion": "\n"},
        {"prompt": "a", "completion": None},
    ]
    texts = load_targets(lines(tmp_path, *rows))
    assert len(texts) == 1
    assert texts.dropped == {forms.EMPTY_PROMPT: 1, forms.EMPTY_RESPONSE: 1, forms.MISSING: 1}
    assert "1 example; dropped 3 rows" in texts.summary()


def test_prompts_stand_once_and_a_limit_stops_the_reading(tmp_path):
    """The last line is broken; with a limit of two prompts nobody gets there."""
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"prompt": p}) for p in ("a", "a", "b")]
    path.write_text("\n".join([*rows, "{broken"]))
    texts = load_prompts(Source(str(path), limit=2))
    assert texts.prompts == ["a", "b"] and texts.dropped == {REPEATED: 1} and "2 prompts" in texts.summary()
    with pytest.raises(LabError, match="line 4: malformed JSON"):
        load_prompts(str(path))


def test_labelled_responses_have_a_label_that_is_true_or_false(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": "false"}]
    assert load_labelled(lines(tmp_path, *rows, {"prompt": "a", "completion": "d"})).labels == [True, False]
    with pytest.raises(LabError, match="line 1: `label` is 'good'"):
        load_labelled(lines(tmp_path, rows[0] | {"label": "good"}))


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (load_targets, {"question": "a", "reply": "b"}, "Perhaps rename `question` to `prompt` and `reply` to"),
        (load_targets, {"prompt": "a"}, "Expected are `prompt` with one of `completion`"),
        (load_prompts, {"promt": "a"}, "Perhaps rename `promt` to `prompt`"),
        (load_targets, {"prompt": 3, "completion": "b"}, "line 1: `prompt` is of type int"),
        (load_targets, {"messages": "text"}, "line 1: `messages` is a text; expected a list"),
        (load_targets, {"prompt": "", "completion": "b"}, r"gives no example\. Dropped 1 row: empty prompt \(1\)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place_or_the_names_to_change(tmp_path, load, row, message):
    with pytest.raises(LabError, match=message):
        load(lines(tmp_path, row))


def test_targets_are_tokenised_apart_end_once_and_are_cut_with_a_count():
    """Limits 3 and 4: of "abcde" the last three are kept; "wxyz" loses its end token; "wx" keeps it. A target that
    holds the end token, and a prompt of nothing, are dropped."""
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    end = tokenizer.eos_token_id
    ids = {c: tokenizer(c)["input_ids"][0] for c in "abcdewxyz"}
    texts = TargetTexts(["abcde", "a", "b", ""], ["wxyz", "wx", "w<end>x", "x"], source="test")
    prompts, targets, kept, report = tokenise_targets(texts, tokenizer, 3, 4, end)
    assert prompts.tolist() == [[ids[c] for c in "cde"], [ids["a"]]] and kept == [0, 1]
    assert targets.tolist() == [[[ids[c] for c in "wxyz"]], [[ids["w"], ids["x"], end]]]
    assert (report.truncated_prompts, report.truncated_responses, report.longest) == (1, 1, 7)
    assert report.dropped == {HOLDS_END: 1, forms.EMPTY_PROMPT: 1} and "2 examples" in report.summary()


def test_places_are_those_of_the_texts_that_were_given():
    """The first holds the end token and the third has no target: what is left are the second and the fourth."""
    tokenizer = tiny_tokenizer(["one two three"])
    texts = TargetTexts(["one"] * 4, ["a<end>d", "b", "", "c"])
    prompts, targets, kept, report = tokenise_targets(texts, tokenizer, None, None, tokenizer.eos_token_id)
    assert kept == [1, 3] and len(prompts) == len(targets) == report.kept == 2


def test_a_long_prompt_alone_keeps_its_end_and_a_short_one_all(tmp_path):
    tokenizer = tiny_tokenizer(["one two three"])
    ids = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    prompts, report = data.tokenise_prompts(["one two three", "one"], tokenizer, 2)
    assert len(ids) > 2 and prompts.tolist()[0] == ids[-2:] and report.truncated_prompts == 1


def test_of_two_columns_with_targets_the_first_of_the_usual_names_is_taken(tmp_path):
    row = {"summary": " s", "answer": " a", "prompt": "p", "completion": " c"}
    assert load_targets(lines(tmp_path, row)).targets == [" c"]
    del row["completion"]
    assert load_targets(lines(tmp_path, row)).targets == [" a"]


def test_a_label_beside_a_pair_is_not_used(tmp_path):
    pair = {"prompt": "p", "chosen": " a", "rejected": " b", "label": True}
    assert not data.holds_labelled(lines(tmp_path, pair))
    assert data.holds_labelled(lines(tmp_path, {"prompt": "p", "completion": " a", "label": True}))
    assert not data.holds_labelled(lines(tmp_path, {"prompt": "p", "completion": " a"}))


def test_of_labelled_responses_the_desirable_ones_are_targets(tmp_path):
    """KTO reads every label. SFT trains on no undesirable response and counts them. A label that is
    neither true nor false, or is missing, says nothing, and neither does that of a pair."""
    labels = [True, False, "true", "False", 1, 0, "sports", None]
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": label} for n, label in enumerate(labels)]
    texts = load_targets(lines(tmp_path, *rows))
    assert texts.targets == ["c0", "c2", "c4", "c6", "c7"] and texts.dropped == {UNDESIRABLE: 3}
    assert "5 examples; dropped 3 rows: labelled undesirable (3)" in texts.summary()
    assert len(load_labelled(lines(tmp_path, *rows[:6]))) == len(load_prompts(lines(tmp_path, *rows[:6]))) == 6
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "label": False}
    assert load_targets(lines(tmp_path, pair)).targets == ["a"]
    with pytest.raises(LabError, match="no pairs of chosen and rejected ones. `rlhf-lab train kto`"):
        load_preferences(lines(tmp_path, *rows))
    with pytest.raises(LabError, match=r"gives no example\. Dropped 1 row: labelled undesirable \(1\)"):
        load_targets(lines(tmp_path, rows[1]))
