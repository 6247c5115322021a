"""Which blocks of a row are seen, against torch's own count of every pair of tokens; the kernel, compiled here."""

import shutil

import pytest
import torch
from pretend_gpu import pretended_gpu
from tiny_models import one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import flex_attention
from rlhf_lab.policies.transformer import varlen_attention as row


def a_row(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """text and segment of a row of 1 to 5 prompts of 1 to 40 tokens, each with 0 to 4 responses of 0 to 40."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    text, segment = [], []
    for t in range(number(1, 5)):
        lengths = [number(1, 40), *(number(0, 40) for _ in range(number(0, 4)))]
        for s, length in enumerate(lengths):
            text += [t] * length
            segment += [s] * length
    return torch.tensor(text), torch.tensor(segment)


def by_pairs(text: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """(N, N): who sees whom, written down from the rule."""
    q, k = torch.arange(len(text))[:, None], torch.arange(len(text))[None]
    return (q >= k) & (text[q] == text[k]) & ((segment[k] == 0) | (segment[k] == segment[q]))


@pytest.mark.parametrize("size", [4, 16, 128])
def test_blocks_found_from_their_first_and_last_tokens_are_those_found_by_looking_at_every_pair(size):
    """60 random rows. Blocks that stick out of the row count as not seen whole."""
    some_full = 0
    for seed in range(60):
        text, segment = a_row(seed)
        some, full = flex_attention.visible_blocks(text, segment, size)
        n = len(some)
        whole = torch.zeros(n * size, n * size, dtype=torch.bool)
        whole[: len(text), : len(text)] = by_pairs(text, segment)
        blocks = whole.view(n, size, n, size)
        assert torch.equal(some, blocks.any(3).any(1)), seed
        assert torch.equal(full, blocks.all(3).all(1)), seed
        some_full += int(full.sum())
    assert some_full or size == 128  # the case is met (rows here are too short for it with the largest blocks)


def test_the_blocks_are_found_on_the_cpu_also_for_tokens_that_lie_on_a_gpu():
    """The same lists of blocks, where the attention is computed."""
    text, segment = a_row(1)
    there = flex_attention.block_mask(text, segment, torch.device("cpu"), 16)
    with pretended_gpu() as gpu:
        mask = flex_attention.block_mask(text.to(gpu), segment.to(gpu), gpu, 16)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
            assert getattr(mask, name).device == gpu
            assert getattr(mask, name).tolist() == getattr(there, name).tolist(), name


def test_the_mask_is_torch_s_own():
    """`create_block_mask` on the same rule: the same blocks in the same order, for the backward pass too."""
    from torch.nn.attention.flex_attention import create_block_mask

    for seed in range(8):
        text, segment = a_row(seed)
        ours = flex_attention.block_mask(text, segment, torch.device("cpu"), 16)
        theirs = create_block_mask(ours.mask_mod, None, None, len(text), len(text), device="cpu", BLOCK_SIZE=(16, 16))
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
        for which in ("kv", "q", "full_kv", "full_q"):
            count = getattr(ours, f"{which}_num_blocks")
            assert torch.equal(count, getattr(theirs, f"{which}_num_blocks")), which
            mine, yours = getattr(ours, f"{which}_indices"), getattr(theirs, f"{which}_indices")
            listed = torch.arange(mine.shape[-1]) < count[..., None]
            assert torch.equal(mine[listed], yours[listed]), which


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's code for this kernel calls at::vec::transpose_block, which it has with vector instructions only",
)
@pytest.mark.slow
def test_the_compiled_kernel_gives_the_dense_attention_for_rows_of_many_lengths_without_compiling_anew(monkeypatch):
    """What a GPU runs, compiled here for the CPU (forward only: torch has no backward of it there). Rows of another
    length and pattern must not compile it again."""
    policy = LanguageModelPolicy(tiny("llama", context=400), end_token=0, max_new_tokens=90)

    def compiled(self, query, key, value, scale):
        if self._blocks is None:
            self._blocks = flex_attention.block_mask(self._text, self._segment, query.device)
        return flex_attention.attend(query, key, value, self._blocks, scale, compiled=True)

    compilations = []
    for seed in range(1, 6):
        prompts, responses = variable_length_batch(count=3, group=4, longest=90, seed=seed)
        with torch.no_grad():
            dense = policy.token_log_probs(prompts, responses)
            with monkeypatch.context() as patch:
                patch.setattr(row.VarlenLayout, "_attend_dense", compiled)
                sparse = policy.token_log_probs(prompts, responses)
        assert (dense - sparse).abs().max() < 1e-4
        compilations.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compilations[-1] - compilations[0] == 0, compilations
