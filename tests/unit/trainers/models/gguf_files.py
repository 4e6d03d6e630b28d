"""GGUF files of tiny Llamas, as llama.cpp's converter writes them."""

import json

import gguf
import numpy as np

from tests.tiny import llama
from trainers.models.chat import train_tokenizer

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL, NORMAL = 3, 1


def save_gguf(file, *, pre="gpt-2", template=True, kind="F32", architecture="llama", extra=()):
    """Write a Llama of two layers with a byte tokenizer; return it and its tokenizer."""
    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    model = llama(vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=None)
    writer = gguf.GGUFWriter(file, architecture)
    _describe(writer, model.config)
    _tokenizer(writer, tokenizer, pre)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, weight in _weights(model):
        quantized = weight.ndim == 2 and kind != "F32"
        chosen = gguf.GGMLQuantizationType[kind if quantized else "F32"]
        writer.add_tensor(name, gguf.quantize(weight, chosen), raw_dtype=chosen)
    for name in extra:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval(), tokenizer


def _describe(writer, config):
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _tokenizer(writer, tokenizer, pre):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def _weights(model):
    config, held = model.config, {name: w.detach().numpy() for name, w in model.named_parameters()}
    yield "token_embd.weight", held["model.embed_tokens.weight"]
    yield "output_norm.weight", held["model.norm.weight"]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for short, long in LAYER.items():
            weight = held[f"model.layers.{layer}.{long}.weight"]
            if short in heads:  # rotary halves beside one another, as llama.cpp has them
                halves = weight.reshape(heads[short], 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            yield f"blk.{layer}.{short}.weight", np.ascontiguousarray(weight)
