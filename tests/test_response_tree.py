"""`ResponseTree`: its order, its indices and its refusals, against lists made by itertools."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.response_tree import LARGEST, ResponseTree


def listed(vocab: int, depth: int, has_end: bool) -> list[tuple[int, ...]]:
    """Every response in the documented order: those that end at once, after one token, …; full length last."""
    if not has_end:
        return list(itertools.product(range(vocab), repeat=depth))
    words = range(vocab - 1)
    early = [(*head, vocab - 1) for n in range(depth - 1) for head in itertools.product(words, repeat=n)]
    full = [(*head, last) for head in itertools.product(words, repeat=depth - 1) for last in range(vocab)]
    return early + full


@st.composite
def trees(draw):
    has_end = draw(st.booleans())
    return ResponseTree(draw(st.integers(2 if has_end else 1, 5)), draw(st.integers(1, 4)), has_end)


@given(trees())
def test_responses_are_those_of_itertools_in_the_documented_order(tree):
    expected = listed(tree.vocab_size, tree.depth, tree.has_end)
    assert [tuple(ids) for ids in tree.responses.tolist()] == expected
    assert tree.num_responses == len(expected) == len(set(expected))


@given(trees())
def test_index_of_responses_is_the_identity(tree):
    assert torch.equal(tree.index(tree.responses), torch.arange(tree.num_responses))


@given(trees(), st.integers(0, 2**31))
def test_index_of_a_batch_is_the_place_in_the_list_whatever_the_padding(tree, seed):
    """(B, G) responses from lists of their own, some padded wider than the tree is deep, with ids that mean
    nothing in the padding."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(tree.num_responses, (3, 4), generator=g)
    every = listed(tree.vocab_size, tree.depth, tree.has_end)
    batch = Tokens.from_lists([[list(every[i]) for i in row] for row in place.tolist()]).pad_to(tree.depth + 2)
    noisy = Tokens(torch.where(batch.mask, batch.ids, 77), batch.mask)
    assert torch.equal(tree.index(batch), place)
    assert torch.equal(tree.index(noisy), place)
    assert torch.equal(tree.index(batch.trim()), place)


@given(trees())
def test_nodes_number_the_prefixes_of_each_depth_in_lexicographic_order(tree):
    """The row of a prefix in its depth's table is its place among all prefixes of that length."""
    row = {
        prefix: i
        for t in range(tree.depth)
        for i, prefix in enumerate(itertools.product(range(tree.branching), repeat=t))
    }
    nodes = tree.nodes(tree.responses)
    for ids, mask, found in zip(tree.responses.ids.tolist(), tree.responses.mask.tolist(), nodes.tolist(), strict=True):
        assert found == [row[tuple(ids[:t])] if counts else 0 for t, counts in enumerate(mask)]


def test_shapes_count_the_prefixes_and_next_tokens_of_every_depth():
    assert ResponseTree(3, 3).shapes == [(1, 3), (3, 3), (9, 3)]
    assert ResponseTree(3, 3, has_end=True).shapes == [(1, 3), (2, 3), (4, 3)]


def test_counts_of_large_trees_are_right_without_listing_them():
    """8⁷; and with an end token 1 + 7 + … + 7⁵ that end early and 7⁶ · 8 of full length."""
    assert ResponseTree(8, 7).num_responses == 2_097_152
    assert ResponseTree(8, 7, has_end=True).num_responses == (7**6 - 1) // 6 + 7**6 * 8


def test_end_token_is_the_last_id_or_none():
    assert ResponseTree(4, 2, has_end=True).end_token == 3
    assert ResponseTree(4, 2).end_token is None


def test_prompts_are_single_tokens_above_the_responses_and_know_their_row():
    tree = ResponseTree(5, 2)
    prompts = tree.prompts(3)
    assert prompts.tolist() == [[5], [6], [7]]
    assert tree.prompt_index(prompts[torch.tensor([2, 0, 2])]).tolist() == [2, 0, 2]
    with pytest.raises(LabError, match=r"Prompt id 4 is a response token"):
        tree.prompt_index(Tokens.full(torch.tensor([[5], [4]])))


@pytest.mark.parametrize("vocab, depth, has_end", [(0, 1, False), (3, 0, False), (1, 2, True), (-1, 2, False)])
def test_a_tree_without_responses_is_refused(vocab, depth, has_end):
    with pytest.raises(LabError, match="A tree needs vocab_size"):
        ResponseTree(vocab, depth, has_end)


def test_too_many_responses_are_refused_with_their_number_and_the_mend():
    """8⁹ = 134,217,728 is above the limit; nothing may be listed on the way to the message."""
    assert 8**9 > LARGEST > 8**8
    with pytest.raises(LabError, match=r"134,217,728 .*Choose a smaller vocab_size \(8\) or depth \(9\)"):
        ResponseTree(8, 9)


bad = pytest.mark.parametrize(
    "has_end, ids, message",
    [
        (True, [0, 3], "outside 0 … 2"),
        (True, [-1, 2], "outside 0 … 2"),
        (False, [0, 0, 0, 0], "longer than the tree's depth 3"),
        (True, [], "empty"),
        (True, [0, 1], "without its end token"),
        (False, [0, 1], "no end token"),
        (True, [2, 0, 0], "end token"),
        (True, [0, 2, 2], "end token"),
    ],
)


@bad
def test_what_is_no_response_of_the_tree_is_refused(has_end, ids, message):
    """Among good responses, so that the check must look at every one of them. A sequence that goes on after its
    end token is not in the list either."""
    tree = ResponseTree(3, 3, has_end)
    batch = Tokens.from_lists([[[0, 1, 0], ids]])
    with pytest.raises(LabError, match=message):
        tree.check(batch)
    with pytest.raises(LabError, match=message):
        tree.index(batch)


@given(trees())
def test_check_lets_every_response_pass(tree):
    tree.check(tree.responses)
