"""`rlhf_lab.batch`: the (B, G) containers keep sequences whole, whatever the padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.algorithms.kto import LabelledResponses
from rlhf_lab.batch import Pairs, Tokens, cat, cat_pairs, pick_pairs
from rlhf_lab.errors import LabError
from rlhf_lab.losses import weighted_mean

sequences = st.lists(st.integers(0, 9), max_size=5)
rows = st.lists(sequences, min_size=1, max_size=5)


@st.composite
def groups(draw, min_group=1):
    """B lists of G sequences, the first of them not empty (so that nesting shows)."""
    number, group = draw(st.integers(1, 4)), draw(st.integers(min_group, 4))
    return [[draw(sequences) for _ in range(group)] for _ in range(number)]


@given(rows)
def test_lists_of_different_lengths_come_back_as_they_went_in(lists):
    tokens = Tokens.from_lists(lists)
    assert tokens.tolist() == lists
    assert tokens.lengths.tolist() == [len(seq) for seq in lists]
    assert len(tokens) == len(lists)


@given(groups())
def test_groups_of_different_lengths_come_back_as_they_went_in(lists):
    tokens = Tokens.from_lists(lists)
    assert tokens.shape[:2] == (len(lists), len(lists[0]))
    assert tokens.tolist() == lists


@given(rows)
def test_sequences_lie_at_the_left_and_padding_holds_zero(lists):
    tokens = Tokens.from_lists(lists)
    assert (tokens.mask.int().diff(dim=-1) <= 0).all()
    assert (tokens.ids[~tokens.mask] == 0).all()


def test_an_id_of_zero_counts_where_the_mask_says_so():
    """Masks come from lengths: [0] and [0, 0] are two sequences, though padding is 0 too."""
    tokens = Tokens.from_lists([[0], [0, 0], []])
    assert tokens.lengths.tolist() == [1, 2, 0]
    assert not tokens[0].equal(tokens[1]).item()
    assert not tokens[0].equal(tokens[2]).item()


def test_no_rows_and_uneven_groups_are_refused():
    with pytest.raises(LabError, match="no rows"):
        Tokens.from_lists([])
    with pytest.raises(LabError, match=r"\[1, 2\]"):
        Tokens.from_lists([[[1], [2]], [[3]]])


def test_ids_and_mask_of_two_shapes_are_refused():
    with pytest.raises(LabError, match=r"\(2, 3\).*\(2, 2\)"):
        Tokens(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool))


def test_full_counts_every_token():
    tokens = Tokens.full(torch.arange(24).reshape(2, 3, 4))
    assert tokens.mask.all() and tokens.mask.dtype == torch.bool
    assert tokens.shape == (2, 3, 4) and tokens.lengths.shape == (2, 3)


@given(groups(), st.integers(0, 9))
def test_padding_changes_no_sequence(lists, extra):
    tokens = Tokens.from_lists(lists)
    wide = tokens.pad_to(tokens.shape[-1] + extra)
    assert wide.shape[-1] == tokens.shape[-1] + extra
    assert wide.tolist() == lists
    assert wide.equal(tokens).all() and tokens.equal(wide).all()
    assert wide.trim().shape[-1] == max(1, max(len(seq) for row in lists for seq in row))
    assert wide.trim().tolist() == lists
    assert tokens.pad_to(0).shape == tokens.shape, "pad_to never cuts"


@given(st.lists(st.tuples(sequences, sequences), min_size=1, max_size=6))
def test_equal_is_equality_of_the_lists(both):
    left, right = Tokens.from_lists([a for a, _ in both]), Tokens.from_lists([b for _, b in both])
    assert left.equal(right).tolist() == [a == b for a, b in both]


def test_equal_does_not_look_at_ids_that_do_not_count():
    a = Tokens(torch.tensor([[3, 7]]), torch.tensor([[True, False]]))
    b = Tokens(torch.tensor([[3, 8]]), torch.tensor([[True, False]]))
    assert a.equal(b).item()


@given(groups(), st.data())
def test_take_picks_the_responses_that_the_index_names(lists, data):
    tokens = Tokens.from_lists(lists)
    group = len(lists[0])
    number = data.draw(st.integers(1, 5))
    index = [[data.draw(st.integers(0, group - 1)) for _ in range(number)] for _ in lists]
    taken = tokens.take(torch.tensor(index))
    assert taken.shape == (len(lists), number, tokens.shape[-1])
    assert taken.tolist() == [[row[i] for i in pick] for row, pick in zip(lists, index, strict=True)]


def test_take_refuses_prompts_and_indices_of_another_batch():
    responses = Tokens.full(torch.zeros(2, 3, 4, dtype=torch.long))
    with pytest.raises(LabError, match="take"):
        responses.take(torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(LabError, match="take"):
        responses.take(torch.zeros(2, dtype=torch.long))
    with pytest.raises(LabError, match="take"):
        Tokens.full(torch.zeros(2, 3, dtype=torch.long)).take(torch.zeros(2, 1, dtype=torch.long))


@given(rows, st.data())
def test_rows_are_kept_as_rows_by_every_kind_of_index(lists, data):
    tokens = Tokens.from_lists(lists)
    number = len(lists)
    i = data.draw(st.integers(-number, number - 1))
    assert tokens[i].tolist() == [lists[i]], "an integer keeps the batch axis"
    order = data.draw(st.lists(st.integers(0, number - 1), max_size=6))
    assert tokens[torch.tensor(order, dtype=torch.long)].tolist() == [lists[j] for j in order]
    assert tokens[1:].tolist() == lists[1:]
    keep = torch.tensor([data.draw(st.booleans()) for _ in lists])
    assert tokens[keep].tolist() == [row for row, k in zip(lists, keep.tolist(), strict=True) if k]


def test_a_loop_over_rows_ends_and_a_row_out_of_range_is_refused():
    lists = [[1, 2], [], [3]]
    tokens, pairs = Tokens.from_lists(lists), pairs_of(3, torch.tensor([0.1, 0.2, 0.7]))
    assert [row.tolist() for row, _ in zip(tokens, range(10), strict=False)] == [[row] for row in lists]
    assert [p.weight.shape for p, _ in zip(pairs, range(10), strict=False)] == [(1,)] * 3
    for batch in (tokens, pairs):
        for out in (3, -4):
            with pytest.raises(IndexError, match=str(out)):
                batch[out]


@given(rows, st.integers(1, 3))
def test_repeat_keeps_a_rows_copies_together(lists, times):
    assert Tokens.from_lists(lists).repeat(times).tolist() == [row for row in lists for _ in range(times)]


@given(groups())
def test_reshape_keeps_the_order_of_the_sequences(lists):
    tokens = Tokens.from_lists(lists)
    flat = tokens.reshape(-1)
    assert flat.tolist() == [seq for row in lists for seq in row]
    assert flat.reshape(len(lists), len(lists[0])).tolist() == lists


@given(rows, rows)
def test_cat_joins_prompts_of_different_widths(first, second):
    assert cat([Tokens.from_lists(first), Tokens.from_lists(second)]).tolist() == first + second


@given(groups())
def test_cat_joins_responses_along_their_own_axis(lists):
    wide = [[[*seq, 1, 2] for seq in row] for row in lists]
    joined = cat([Tokens.from_lists(lists), Tokens.from_lists(wide)], dim=1)
    assert joined.tolist() == [a + b for a, b in zip(lists, wide, strict=True)]


def test_cat_of_nothing_and_of_axes_that_do_not_fit_is_refused_by_name():
    for join in (cat, cat_pairs):
        with pytest.raises(LabError, match="nothing to concatenate"):
            join([])
    one, two = Tokens.from_lists([[[1], [2]]]), Tokens.from_lists([[[1], [2], [3]]])
    with pytest.raises(LabError, match=r"\(1, 2, 1\), \(1, 3, 1\) cannot be concatenated along axis 0"):
        cat([one, two])
    assert cat([one, two], dim=1).tolist() == [[[1], [2], [1], [2], [3]]]
    with pytest.raises(LabError, match="axis 2"):
        cat([one, one], dim=2)
    with pytest.raises(LabError, match="cannot be concatenated"):
        cat([one, Tokens.from_lists([[1]])])


def pairs_of(number, weight=None):
    prompts = Tokens.from_lists([[i] for i in range(number)])
    responses = Tokens.from_lists([[[i, 1], [i]] for i in range(number)])
    return Pairs(prompts, responses, weight)


def test_pairs_refuse_what_is_not_two_responses_a_prompt():
    prompts = Tokens.full(torch.zeros(2, 1, dtype=torch.long))
    for shape in [(2, 3, 4), (3, 2, 4), (2, 4)]:
        with pytest.raises(LabError, match="two responses"):
            Pairs(prompts, Tokens.full(torch.zeros(shape, dtype=torch.long)))
    with pytest.raises(LabError, match="weight"):
        pairs_of(2, torch.ones(3))


def test_pairs_rows_keep_prompt_responses_and_weight_together():
    pairs = pairs_of(4, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    some = pairs[torch.tensor([2, 0])]
    assert len(some) == 2
    assert some.prompts.tolist() == [[2], [0]]
    assert some.responses.tolist() == [[[2, 1], [2]], [[0, 1], [0]]]
    assert torch.equal(some.weight, torch.tensor([0.3, 0.1]))
    assert pairs_of(3)[1:].weight is None
    assert pairs.to("cpu").responses.tolist() == pairs.responses.tolist()


def test_cat_pairs_keeps_weights_only_where_every_part_has_them():
    weighted = pairs_of(2, torch.tensor([0.1, 0.9]))
    both = cat_pairs([weighted, pairs_of(3, torch.ones(3))])
    assert both.weight.tolist() == pytest.approx([0.1, 0.9, 1, 1, 1])
    assert both.prompts.tolist() == [[0], [1], [0], [1], [2]]
    assert cat_pairs([weighted, pairs_of(3)]).weight is None


def test_pick_pairs_puts_the_winner_first_beside_its_own_prompt_and_drops_equals():
    """Prompt 0's responses 0 and 1 are one sequence, so its first pair says nothing and goes."""
    prompts = Tokens.from_lists([[5], [6, 7]])
    responses = Tokens.from_lists([[[1], [1], [2, 3]], [[4], [], [4, 0]]])
    index = torch.tensor([[[0, 1], [2, 0]], [[1, 0], [0, 2]]])
    pairs, dropped = pick_pairs(prompts, responses, index)
    assert dropped == 1
    assert pairs.prompts.tolist() == [[5], [6, 7], [6, 7]]
    assert pairs.responses.tolist() == [[[2, 3], [1]], [[], [4]], [[4], [4, 0]]]


@given(groups(min_group=2), st.data())
def test_pick_pairs_agrees_with_a_plain_loop(lists, data):
    group, number = len(lists[0]), data.draw(st.integers(1, 3))
    index = [[[data.draw(st.integers(0, group - 1)) for _ in range(2)] for _ in range(number)] for _ in lists]
    prompts = Tokens.from_lists([[b] for b in range(len(lists))])
    pairs, dropped = pick_pairs(prompts, Tokens.from_lists(lists), torch.tensor(index))
    expected = [
        ([b], [lists[b][win], lists[b][lose]])
        for b in range(len(lists))
        for win, lose in index[b]
        if lists[b][win] != lists[b][lose]
    ]
    assert dropped == len(lists) * number - len(expected)
    found = list(zip(pairs.prompts.tolist(), pairs.responses.tolist(), strict=True))
    assert found == expected


@pytest.mark.parametrize(
    "mask, row",
    [([[True, True], [False, True]], "row 1"), ([[[True, False, True]]], "row 0, 0"), ([False, True], "row 0")],
)
def test_a_mask_that_is_no_prefix_is_refused_by_row(mask, row):
    """Padded at the left, or with a gap: positions and log-probabilities would be those of another sequence."""
    mask = torch.tensor(mask)
    with pytest.raises(LabError, match=f"mask of {row} is padded at the left or has a gap.*Pad at the right"):
        Tokens(torch.ones_like(mask, dtype=torch.long), mask)


def test_a_mask_on_a_device_is_not_read():
    """Reading it would wait for the device; the meta device would raise."""
    assert Tokens.full(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3)


@pytest.mark.parametrize(
    "weight, message",
    [
        ([1.0, -0.5, 1.0], r"weight is -0\.5 at index 1"),
        ([1.0, 1.0, float("nan")], r"weight is nan at index 2"),
        ([float("inf"), 1.0, 1.0], r"weight is inf at index 0"),
        ([0.0, 0.0, 0.0], "All weights are zero"),
        ([1.0, 1.0], r"weight has shape \(2,\), expected \(3,\)"),
    ],
)
def test_weights_that_give_no_mean_are_refused(weight, message):
    prompts = Tokens.from_lists([[1], [2], [3]])
    responses = Tokens.from_lists([[[1], [2]]] * 3)
    with pytest.raises(LabError, match=message):
        Pairs(prompts, responses, torch.tensor(weight))
    with pytest.raises(LabError, match=message):
        LabelledResponses(prompts, responses, torch.tensor([[True, False]] * 3), torch.tensor(weight))


def test_a_batch_of_rows_without_weight_is_no_error_and_adds_nothing():
    """Of a whole with weights (0, 0, 2), rows 0 and 1 make a part whose mean is 0, with a gradient of 0."""
    pairs = Pairs(
        Tokens.from_lists([[1], [2], [3]]), Tokens.from_lists([[[1], [2]]] * 3), torch.tensor([0.0, 0.0, 2.0])
    )
    value = torch.tensor([5.0, 7.0], requires_grad=True)
    result = weighted_mean(value, pairs[torch.tensor([0, 1])].weight)
    result.backward()
    assert result == 0 and (value.grad == 0).all()
    assert weighted_mean(torch.tensor([5.0, 7.0, 3.0]), pairs.weight) == 3


def test_pairs_go_to_a_device_with_all_that_they_hold():
    """The device "meta" holds no numbers, but a tensor says that it is there."""
    tokens = Tokens.full(torch.ones(3, 2, 1, dtype=torch.long))
    there = Pairs(tokens[:, 0], tokens, torch.ones(3)).to("meta")
    held = [there.weight, *(part for t in (there.prompts, there.responses) for part in (t.ids, t.mask))]
    assert [t.device.type for t in held] == ["meta"] * 5
    assert Pairs(tokens[:, 0], tokens).to("meta").weight is None
