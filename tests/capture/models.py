"""Tiny models with random weights, and a tokenizer of bytes. No network."""

from typing import Any

import torch
from oracle import ENCODERS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS = 256, 257, 258
VOCABULARY = 272

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    # Wide enough for greedy answers that differ from token to token.
    "initializer_range": 0.4,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
_ROBERTA = {"max_position_embeddings": 64 + PAD + 1}
"""RoBERTa and those like it count positions from behind the padding's id."""
_SPECIAL: dict[str, dict[str, Any]] = {
    "camembert": _ROBERTA,
    "codegen": {"rotary_dim": 4},
    # Wider than the stream that follows it.
    "electra": {"embedding_size": 48},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "gptj": {"rotary_dim": 4},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def tiny(family: str, *, layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Any:
    """A language model of `family`, in eval mode: a causal one, which never ends by itself, or an encoder."""
    torch.manual_seed(seed)
    special = _SPECIAL.get(family, {})
    configured = AutoConfig.for_model(family, **{**_SIZES, "num_hidden_layers": layers, **special, **config})
    head = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    model = head.from_config(configured, dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            # Norms that all start as ones, or zeros, would hide a norm that was left out.
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


def byte_tokenizer() -> Any:
    """A token a byte, and no token of its own accord."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"})
    assert (fast.pad_token_id, fast.bos_token_id, fast.eos_token_id) == (PAD, BOS, EOS)
    return fast


def padded(lengths: list[int], side: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random tokens, padded to the longest on `side`."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        start = width - length if side == "left" else 0
        ids[row, start : start + length] = torch.randint(0, 256, (length,), generator=generator)
        mask[row, start : start + length] = 1
    return {"input_ids": ids, "attention_mask": mask}
