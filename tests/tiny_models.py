"""Tiny random language models and batches of different lengths, for tests of code that uses a language model."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_lab.batch import Tokens


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Whoever imports this runs on one thread: on a busy machine two threads wait on each other at every step of
    a tiny model, which takes up to forty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ARCHITECTURES = ["gpt2", "gpt_neox", "llama"]


def tiny(kind: str, vocab: int = 37, context: int = 48, seed: int = 0, attention: str = "sdpa", wide: float = 0.3):
    """A random model of the architecture; weights wide enough that the logits differ by several nats."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": attention}
    if kind == "gpt2":
        config = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=context, **common)
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"max_position_embeddings": context}
        if kind == "gpt_neox":
            drops = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **drops, **common))
        else:
            model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **sizes, **common))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(wide * torch.randn_like(p))
    return model


def variable_length_batch(count: int = 3, group: int = 4, vocab: int = 37, longest: int = 6, seed: int = 1):
    """Prompts of 1 … 7 tokens and responses of 1 … `longest` tokens, ids over the whole vocabulary."""
    g = torch.Generator().manual_seed(seed)

    def sequence(high: int) -> list[int]:
        length = int(torch.randint(1, high + 1, (), generator=g))
        return torch.randint(0, vocab, (length,), generator=g).tolist()

    prompts = Tokens.from_lists([sequence(7) for _ in range(count)])
    return prompts, Tokens.from_lists([[sequence(longest) for _ in range(group)] for _ in range(count)])


def tiny_tokenizer(texts: list[str], vocab: int = 300, bos: bool = False, end: bool = True):
    """A byte-level BPE tokenizer trained on `texts`; `<end>` ends a text, and `<s>` opens it where asked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<end>", "<s>"]
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"eos_token": "<end>"} if end else {}
    names |= {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat_tokenizer(bos: bool = False):
    """One id a letter; `<end>` ends a text, `<|im_end|>` a turn, and where asked `<s>` opens a text."""
    tokenizer = tiny_tokenizer(["a"], vocab=258, bos=bos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + CHATML
    return tokenizer


def trained(policy, data):
    """Return `policy` after a few large steps on the parameters that require a gradient, such as its adapters."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy.log_prob(*data).mean()).backward()
        optimizer.step()
    return policy
