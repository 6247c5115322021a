"""Conversations in the forms that data have them: who writes them, what is continued, what a template refuses."""

import json

import pytest
from tiny_models import chat_tokenizer, tiny_tokenizer

from rlhf_lab.data import preferences as data
from rlhf_lab.data.preferences import PreferenceTexts, Source, load_preferences, tokenise
from rlhf_lab.data.sft import TargetTexts, load_prompts, load_targets, tokenise_prompts, tokenise_targets
from rlhf_lab.errors import LabError

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4."}

STRICT = """
{%- if messages[0].role == 'system' -%}{{ raise_exception('this template takes no system turn') }}{%- endif -%}
{%- for m in messages -%}
{%- if (loop.index0 % 2 == 0) != (m.role == 'user') -%}{{ raise_exception('turns must alternate') }}{%- endif -%}
{{- '<' + m.role + '>' + m.content + '</>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""

CALLS = """
{%- if tools -%}[{{ tools[0].function.name }}]{%- endif -%}
{%- for m in messages -%}
<{{ m.role }}>{% if 'tool_calls' in m %}call {{ m.tool_calls[0].function.name }}({{ m.tool_calls[0].function.arguments.c }}){% else %}{{ m.content }}{% endif %}</>
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""  # noqa: E501


def tokenizer_of(template: str | None):
    tokenizer = tiny_tokenizer(["hi"])
    tokenizer.chat_template = template
    return tokenizer


def lines(tmp_path, *rows: dict) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(*before: dict) -> dict:
    """A pair whose answers are 4 and 5."""
    return {"chosen": [*before, ANSWER], "rejected": [*before, ANSWER | {"content": "5."}]}


def call(city: str) -> dict:
    function = {"name": "w", "arguments": {"c": city}}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


SUNNY = {"role": "tool", "name": "w", "content": "sunny"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (pair(USER, USER), "turns must alternate"),
        (pair({"role": "system", "content": "Be terse."}, USER), "this template takes no system turn"),
        (pair(USER) | {"prompt": [ANSWER]}, "turns must alternate"),
    ],
)
def test_a_template_s_own_words_come_with_the_file_the_row_and_what_to_do(tmp_path, row, words):
    """The first row is one that the template takes, so the one it refuses is line 2."""
    source = lines(tmp_path, pair(USER), row)
    with pytest.raises(LabError, match=rf"rows\.jsonl, line 2: the chat template.*\({words}\)\. Change") as caught:
        load_preferences(source, tokenizer_of(STRICT))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("load", "row"),
    [
        (load_targets, {"messages": [USER, USER, ANSWER]}),
        (load_targets, {"prompt": [USER, USER], "completion": "4."}),
        (load_prompts, {"prompt": [USER, USER]}),
    ],
)
def test_targets_and_prompts_name_the_row_that_a_template_refuses_too(tmp_path, load, row):
    with pytest.raises(LabError, match=r"rows\.jsonl, line 1: the chat template.*turns must alternate"):
        load(lines(tmp_path, row), tokenizer_of(STRICT))


def test_an_error_in_the_template_itself_is_one_error_as_well(tmp_path):
    """Neither a template that is no template, nor one that asks for what is not there, ends in a traceback."""
    for template in ("{% for %}", "{{ messages[9].content.upper() }}"):
        with pytest.raises(LabError, match="line 1: the chat template refuses the conversation"):
            load_preferences(lines(tmp_path, pair(USER)), tokenizer_of(template))


def test_a_tool_call_before_the_answer_is_written_by_a_template_that_knows_calls(tmp_path):
    """Content null, as the ecosystem writes a turn that only calls. The template above is written out by hand."""
    row = pair(USER, call("Paris"), SUNNY)
    texts = load_preferences(lines(tmp_path, row), tokenizer_of(CALLS))
    assert texts.prompts == ["<user>2+2?</><assistant>call w(Paris)</><tool>sunny</><assistant>"]
    assert (texts.chosen, texts.rejected) == (["4."], ["5."])


@pytest.mark.parametrize("template", [STRICT, None])
def test_a_tool_call_that_nothing_would_write_is_refused_with_its_row(tmp_path, template):
    with pytest.raises(LabError, match=r"rows\.jsonl, line 2: a turn calls a tool"):
        load_preferences(lines(tmp_path, pair(USER), pair(USER, call("Paris"), SUNNY)), tokenizer_of(template))


def test_dialogues_whose_calls_differ_part_there_and_the_first_row_is_named(tmp_path):
    row = {"chosen": [USER, call("Paris"), SUNNY, ANSWER], "rejected": [USER, call("Rome"), SUNNY, ANSWER]}
    with pytest.raises(LabError, match=r"1 row: dialogues differ before the last turn .*the first is line 1"):
        load_preferences(lines(tmp_path, row), tokenizer_of(CALLS))


def test_an_answer_that_is_a_call_is_what_the_template_writes_behind_the_prompt(tmp_path):
    row = {"chosen": [USER, call("Paris")], "rejected": [USER, call("Rome")]}
    texts = load_preferences(lines(tmp_path, row), tokenizer_of(CALLS))
    assert texts.prompts == ["<user>2+2?</><assistant>"]
    assert (texts.chosen, texts.rejected) == (["call w(Paris)</>"], ["call w(Rome)</>"])


def test_empty_fields_that_parquet_adds_to_every_turn_reach_no_template(tmp_path):
    """Parquet's turns all have the same fields: `tool_calls` is None where none is called, and `in` would find it."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([pair(USER, call("Paris"), SUNNY)]), path)
    texts = load_preferences(str(path), tokenizer_of(CALLS))
    assert texts.prompts == ["<user>2+2?</><assistant>call w(Paris)</><tool>sunny</><assistant>"]


TOOLS = [{"type": "function", "function": {"name": "w", "description": "get weather"}}]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_the_column_tools_reaches_the_template(tmp_path, tools):
    tokenizer = tokenizer_of(CALLS)
    expected = ["[w]<user>2+2?</><assistant>"]
    told = load_targets(lines(tmp_path, {"messages": [USER, ANSWER], "tools": tools}), tokenizer)
    assert told.prompts == expected and told.form == "messages with tools"
    assert load_preferences(lines(tmp_path, pair(USER) | {"tools": tools}), tokenizer).prompts == expected
    assert load_prompts(lines(tmp_path, {"prompt": [USER], "tools": tools}), tokenizer).prompts == expected


@pytest.mark.parametrize(("template", "said"), [(STRICT, True), (None, True), (CALLS, False)])
def test_where_no_template_writes_the_tools_the_summary_says_so(tmp_path, template, said):
    texts = load_targets(lines(tmp_path, {"messages": [USER, ANSWER], "tools": TOOLS}), tokenizer_of(template))
    assert ("`tools` are not used" in texts.summary()) == said


@pytest.mark.parametrize(("tools", "message"), [("[{", "`tools` is not JSON"), (3, "`tools` is of type int")])
def test_tools_that_are_no_list_are_refused_with_the_row(tmp_path, tools, message):
    with pytest.raises(LabError, match=rf"line 1: {message}"):
        load_targets(lines(tmp_path, {"messages": [USER, ANSWER], "tools": tools}), tokenizer_of(CALLS))


BEGUN = [USER, {"role": "assistant", "content": "The answer is"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": BEGUN, "chosen": [ANSWER | {"content": " 4."}], "rejected": [ANSWER | {"content": " 5."}]},
        {"prompt": BEGUN, "chosen": " 4.", "rejected": " 5."},
    ],
)
@pytest.mark.parametrize(
    ("template", "prompt"),
    [(STRICT, "<user>2+2?</><assistant>The answer is"), (None, "\n\nHuman: 2+2?\n\nAssistant: The answer is")],
)
def test_an_assistant_s_turn_at_the_prompt_s_end_is_continued_not_closed(tmp_path, row, template, prompt):
    tokenizer = tokenizer_of(template)
    texts = load_preferences(lines(tmp_path, row), tokenizer)
    assert (texts.prompts, texts.chosen, texts.rejected) == ([prompt], [" 4."], [" 5."])
    target = load_targets(lines(tmp_path, {"prompt": BEGUN, "completion": row["chosen"]}), tokenizer)
    assert (target.prompts, target.targets) == ([prompt], [" 4."])
    assert load_prompts(lines(tmp_path, {"prompt": BEGUN}), tokenizer).prompts == [prompt]


def test_two_turns_of_the_assistant_within_one_conversation_stay_two_turns(tmp_path):
    """Nobody says where an answer was begun: the second turn is the answer, and opens as one."""
    texts = load_targets(lines(tmp_path, {"messages": [*BEGUN, ANSWER]}))
    assert texts.prompts == ["\n\nHuman: 2+2?\n\nAssistant: The answer is\n\nAssistant:"] and texts.targets == [" 4."]


@pytest.mark.parametrize("behind", ["", "\n", " \n\n"])
def test_texts_that_a_template_wrote_are_taken_and_end_once(behind):
    """One id a letter: "4." with its end token is the same response as "4." without it."""
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    end = tokenizer.eos_token_id
    four, five = (tokenizer(text)["input_ids"] for text in ("4.", "5."))
    texts = PreferenceTexts(["<end>q"], [f"4.<end>{behind}"], ["5."], source="test")
    pairs, report = tokenise(texts, tokenizer, None, None, end)
    assert pairs.responses.tolist() == [[[*four, end], [*five, end]]] and not report.dropped
    _, targets, _, _ = tokenise_targets(TargetTexts(["q"], [f"4.<end>{behind}"]), tokenizer, None, None, end)
    assert targets.tolist() == [[[*four, end]]]


@pytest.mark.parametrize("content", ["4.", "4.<|im_end|>", "4.<end>\n", "4.<|im_end|><end>"])
def test_where_the_chat_template_writes_the_prompt_a_response_ends_once_in_the_template_s_token(tmp_path, content):
    """Also where the text brings an end token, or two. The whole example is what the template writes of the turns."""
    tokenizer = chat_tokenizer()
    answer = ANSWER | {"content": content}
    end, whole = tokenizer.eos_token_id, tokenizer.apply_chat_template([USER, ANSWER], tokenize=False).rstrip()
    source = lines(tmp_path, {"messages": [USER, answer]})
    prompts, targets, _, report = tokenise_targets(load_targets(source, tokenizer), tokenizer, None, None, end)
    assert tokenizer.decode(prompts.tolist()[0] + targets.tolist()[0][0]) == whole and not report.dropped
    pairs, _ = tokenise(
        load_preferences(lines(tmp_path, pair(USER) | {"chosen": [USER, answer]}), tokenizer),
        tokenizer,
        None,
        None,
        end,
    )
    assert [tokenizer.decode(ids) for ids in pairs.responses.tolist()[0]] == ["4.<|im_end|>", "5.<|im_end|>"]


def test_each_row_of_a_mixed_file_has_the_end_of_its_own_form(tmp_path):
    """A conversation, a text, and a text that brings the token with which the template would close a turn."""
    tokenizer = chat_tokenizer()
    rows = [
        {"prompt": [USER], "completion": "4."},
        {"prompt": "2+2?", "completion": "4."},
        {"prompt": "2+2?", "completion": "4.<|im_end|>\n"},
    ]
    texts = load_targets(lines(tmp_path, *rows), tokenizer)
    _, targets, _, _ = tokenise_targets(texts, tokenizer, None, None, tokenizer.eos_token_id)
    assert [tokenizer.decode(y) for (y,) in targets.tolist()] == ["4.<|im_end|>", "4.<end>", "4.<|im_end|>"]
    rows = [row | {"chosen": row["completion"], "rejected": "5."} for row in rows]
    texts = load_preferences(
        lines(tmp_path, *[{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]), tokenizer
    )
    assert texts.templated == [True, False, False] and texts.first(1).templated == [True]
    pairs, _ = tokenise(texts, tokenizer, None, None, tokenizer.eos_token_id)
    assert [tokenizer.decode(ids) for ids in pairs.responses.tolist()[2]] == ["4.<|im_end|>", "5.<end>"]


def test_a_template_s_end_within_a_response_drops_the_pair_and_no_end_is_added_where_none_is_asked(tmp_path):
    tokenizer = chat_tokenizer()
    inside = pair(USER) | {"chosen": [USER, ANSWER | {"content": "4.<|im_end|>5."}]}
    texts = load_preferences(lines(tmp_path, pair(USER), inside), tokenizer)
    pairs, report = tokenise(texts, tokenizer, None, None, tokenizer.eos_token_id)
    assert len(pairs) == 1 and report.dropped == {data.HOLDS_END: 1}
    pairs, _ = tokenise(texts.first(1), tokenizer, None, None, None)
    assert [tokenizer.decode(ids) for ids in pairs.responses.tolist()[0]] == ["4.", "5."]


def test_half_a_character_in_texts_made_in_python_is_one_error_as_well():
    tokenizer = tiny_tokenizer(["a"])
    with pytest.raises(LabError, match=r"Text 1 contains a lone surrogate \(U\+D83D.*at character 2"):
        tokenise(PreferenceTexts(["q", "q"], ["a", "b\ud83d"], ["c", "d"]), tokenizer, None, None, 0)
    with pytest.raises(LabError, match="Text 0 contains a lone surrogate"):
        tokenise_prompts(["\udce9"], tokenizer, None)


def test_an_end_token_alone_is_an_empty_response():
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    texts = PreferenceTexts(["q", "q"], ["<end>", "a"], ["b", "b"], source="test")
    pairs, report = tokenise(texts, tokenizer, None, None, tokenizer.eos_token_id)
    assert len(pairs) == 1 and report.dropped == {data.EMPTY_RESPONSE: 1}


HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}
NO = GPT | {"value": "no"}
SYSTEM = {"from": "system", "value": "Be terse."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": NO}, "\n\nHuman: hi\n\nAssistant:"),
        ({"conversations": [HUMAN], "chosen": [GPT], "rejected": [NO]}, "\n\nHuman: hi\n\nAssistant:"),
        ({"conversations": [SYSTEM, HUMAN], "chosen": GPT, "rejected": NO}, "Be terse.\n\nHuman: hi\n\nAssistant:"),
        (
            {"conversations": [HUMAN], "chosen": GPT, "rejected": NO, "system": "Be terse."},
            "Be terse.\n\nHuman: hi\n\nAssistant:",
        ),
        (
            {"instruction": "hi", "input": "", "chosen": "yes", "rejected": "no"},
            "\n\nHuman: hi\n\nAssistant:",
        ),
    ],
)
def test_pairs_of_sharegpt_s_and_alpaca_s_form_are_conversations(tmp_path, row, prompt):
    texts = load_preferences(lines(tmp_path, row))
    assert (texts.prompts, texts.chosen, texts.rejected) == ([prompt], [" yes"], [" no"])
    assert load_targets(lines(tmp_path, row)).targets == [" yes"]
    assert load_prompts(lines(tmp_path, row)).prompts == [prompt]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversations": [HUMAN, GPT]}, "<user>hi</><assistant>"),
        ({"instruction": "hi", "input": "", "output": "yes"}, "<user>hi</><assistant>"),
        ({"instruction": "hi", "input": "you", "output": "yes"}, "<user>hi\n\nyou</><assistant>"),
        ({"instruction": "hi", "output": "yes"}, "<user>hi</><assistant>"),
        (
            {"instruction": "hi", "output": "yes", "history": [["a", "b"], ["c", "d"]]},
            "<user>a</><assistant>b</><user>c</><assistant>d</><user>hi</><assistant>",
        ),
        (
            {"instruction": "hi", "input": "you", "output": "yes", "history": '[["a", "b"]]'},
            "<user>a</><assistant>b</><user>hi\n\nyou</><assistant>",
        ),
        ({"instruction": "hi", "output": "yes", "history": []}, "<user>hi</><assistant>"),
        ({"instruction": "hi", "output": "yes", "history": ""}, "<user>hi</><assistant>"),
    ],
)
def test_targets_of_sharegpt_s_and_alpaca_s_form_are_written_by_the_chat_template(tmp_path, row, prompt):
    texts = load_targets(lines(tmp_path, row), tokenizer_of(STRICT))
    assert (texts.prompts, texts.targets) == ([prompt], ["yes"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "narrator", "value": "a"}, GPT]}, "is from 'narrator'. Known speakers are human"),
        ({"conversations": [{"from": "human", "value": 3}, GPT]}, "`from` and a text as `value`"),
        ({"conversations": [HUMAN, "yes"]}, "`from` and a text as `value`"),
        ({"instruction": 3, "output": "yes"}, "`instruction` is of type int"),
        ({"instruction": "hi", "output": "yes", "history": [["a"]]}, "`history` must be a list of pairs"),
        ({"instruction": "hi", "output": "yes", "history": [["a", None]]}, "`history` must be a list of pairs"),
        ({"instruction": "hi", "output": "yes", "history": {"a": "b"}}, "`history` must be a list of pairs"),
        ({"instruction": "hi", "output": "yes", "history": "[a"}, "`history` is not JSON"),
    ],
)
def test_a_broken_row_of_these_forms_is_refused_with_its_place(tmp_path, row, message):
    with pytest.raises(LabError, match=rf"rows\.jsonl, line 1: .*{message}"):
        load_targets(lines(tmp_path, row))


def test_empty_rows_of_alpaca_s_form_are_dropped_and_counted(tmp_path):
    rows = [{"instruction": text, "output": "yes"} for text in ("hi", " ", None)]
    assert load_targets(lines(tmp_path, *rows)).dropped == {data.EMPTY_PROMPT: 1, data.MISSING: 1}


# --- which rows the chat template writes: Source.chat --------------------------------------------------------------

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant:"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER]
CHATTY = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BY_TEMPLATE = "<user>Hi</><assistant>Yes?</><user>2+2?</><assistant>"


@pytest.mark.parametrize(
    ("row", "chat", "prompt", "chosen"),
    [
        ({"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE + " 5."}, "auto", BY_TEMPLATE, "4."),
        ({"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE + " 5."}, "on", BY_TEMPLATE, "4."),
        ({"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE + " 5."}, "off", DIALOGUE, " 4."),
        ({"prompt": DIALOGUE, "chosen": " 4.", "rejected": " 5."}, "auto", BY_TEMPLATE, "4."),
        ({"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}, "auto", "2+2?", " 4."),
        ({"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}, "on", "<user>2+2?</><assistant>", "4."),
        ({"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}, "off", "2+2?", " 4."),
        (pair(*TURNS), "auto", BY_TEMPLATE, "4."),
        (pair(*TURNS), "off", DIALOGUE, " 4."),
    ],
)
def test_chat_decides_which_rows_the_template_writes(tmp_path, row, chat, prompt, chosen):
    tokenizer, source = tokenizer_of(CHATTY), Source(lines(tmp_path, row), chat=chat)
    texts = load_preferences(source, tokenizer)
    assert (texts.prompts, texts.chosen) == ([prompt], [chosen])
    written = prompt.startswith("<user>")
    assert texts.templated == [written]
    assert ("by the chat template" in texts.summary()) == (written and not isinstance(row["chosen"], list))
    # Targets and prompts of the same row are written in the same way, and so are they without a template.
    targets = load_targets(source, tokenizer)
    assert (targets.prompts, targets.targets, targets.templated) == ([prompt], [chosen], [written])
    assert load_prompts(source, tokenizer).prompts == [prompt]
    if chat == "auto":
        assert load_preferences(source, tokenizer_of(None)).templated == [False]


def test_chat_on_without_a_template_is_refused_before_anything_is_read(tmp_path):
    source = Source(str(tmp_path / "missing.jsonl"), chat="on")
    for load in (load_preferences, load_targets, load_prompts):
        with pytest.raises(LabError, match="no chat template, so chat cannot be on"):
            load(source, tokenizer_of(None))


def test_rows_that_are_too_long_are_dropped_and_counted_where_that_is_asked_for():
    """Limits of 3 and 2 tokens, the end token included: the first pair fits, each other one has one text too many."""
    tokenizer = tiny_tokenizer(["a"])
    end = tokenizer.eos_token_id
    pairs = [("aaa", "a", "b"), ("aaaa", "a", "b"), ("a", "bb", "a"), ("a", "a", "bb")]
    prompts, chosen, rejected = map(list, zip(*pairs, strict=True))
    texts = PreferenceTexts(prompts, chosen, rejected)
    kept, report = tokenise(texts, tokenizer, 3, 2, end, "drop")
    assert len(kept) == 1 and report.dropped == {data.TOO_LONG: 3}
    assert report.truncated_prompts == report.truncated_responses == 0
    assert len(tokenise(texts, tokenizer, 3, 2, end)[0]) == 4
    some = TargetTexts(prompts, chosen)
    targets = tokenise_targets(some, tokenizer, 3, 2, end, "drop")
    assert targets[2] == [0, 3] and targets[3].dropped == {data.TOO_LONG: 2}
    asked, counted = tokenise_prompts(prompts, tokenizer, 3, too_long="drop")
    assert len(asked) == 3 and counted.dropped == {data.TOO_LONG: 1}
