"""Small random models, built from configurations in well under a second each, with a tokenizer of their own.

The weights are seeded and large, so that logits spread over several nats and a wrong scale, cap or bias shows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "The river ran past seventeen old mills, and nobody knew why; still, people came to see the water turn.",
    "A small model knows few words: river, mill, stone, bridge, water, people, morning, 12, 345 and 1999.",
    "In the morning the stone bridge was white with frost, and the people of the valley walked slowly.",
]
VOCAB = 300
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 128}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_neox": SMALL | {"vocab_size": 320, "max_position_embeddings": 128},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4},
    "phi": SMALL | {"max_position_embeddings": 128},
    "gemma2": GROUPED | {"head_dim": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": GROUPED | {"head_dim": 8},
    "cohere": GROUPED | {"logit_scale": 0.25},
    "cohere2": GROUPED | {"logit_scale": 0.0625},
    "granite": GROUPED | {"logits_scaling": 7.0},
    "hyperclovax": GROUPED | {"logits_scaling": 0.3},
    "falcon_h1": GROUPED | {"lm_head_multiplier": 0.7, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "logit_scale": 0.5},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    | {"word_embed_proj_dim": 24, "max_position_embeddings": 128},
    "minicpm3": GROUPED
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    | {"num_key_value_heads": 4, "dim_model_base": 8},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "mistral": GROUPED,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": SMALL | {"multi_query": True},
    "stablelm": GROUPED,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "olmo2": GROUPED,
    "starcoder2": GROUPED,
    "nanochat": GROUPED | {"final_logit_softcapping": 8.0},
}


def tiny_tokenizer(vocab_size: int = VOCAB) -> Any:
    """A byte-level BPE tokenizer of `vocab_size` tokens with `<s>`, `</s>` and `<pad>`, built in code."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def tiny_config(architecture: str, **overrides: Any) -> Any:
    """The configuration of a tiny model of a transformers model type."""
    from transformers import AutoConfig

    settings: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    settings |= ARCHITECTURES.get(architecture, {}) | overrides
    return AutoConfig.for_model(architecture, **settings)


def tiny_model(architecture: str, folder: Path, *, dtype: str = "float32", seed: int = 0, **overrides: Any) -> Path:
    """Saves a random model of a transformers model type, with its tokenizer, into `folder` and returns that."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides))
    return save(model.to(getattr(torch, dtype)), folder, seed=seed)


def save(model: Any, folder: Path, *, seed: int = 0) -> Path:
    """Gives a model large seeded weights and saves it with the tiny tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                width = parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * max(0.2, width))
            elif "head" in _name_of(model, parameter):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _name_of(model: Any, wanted: torch.nn.Parameter) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter is wanted)


def tiny_gguf(path: Path, model: Path) -> Path:
    """Writes a tiny llama folder as an fp32 GGUF file, laid out as llama.cpp's converter does, and returns `path`."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = source.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    special = [gguf.TokenType.CONTROL if index < 3 else gguf.TokenType.NORMAL for index in range(len(tokenizer))]
    writer.add_token_types(special)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in source.state_dict().items():
        values = tensor.numpy()
        for part, count in heads.items():
            if part in name:  # llama.cpp keeps the two halves of a rotation side by side
                rows = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2)
                values = rows.reshape(values.shape).copy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) or name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
