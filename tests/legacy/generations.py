"""A small model, and what its `generate` returns for a prompt."""

from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = 3
WIDTH = 8


class Generation(NamedTuple):
    """What `generate` returned, and the hidden states of one forward over all but the last token of it."""

    outputs: Any
    expected: list[torch.Tensor]


@cache
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()


@cache
def generation(prompt_length: int = 5, new_tokens: int = 4) -> Generation:
    ids = torch.arange(prompt_length)[None] + 7
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    outputs = model().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        output_hidden_states=True,
        return_dict_in_generate=True,
        **settings,
    )
    with torch.no_grad():
        forward = model()(outputs.sequences[:, :-1], output_hidden_states=True)
    return Generation(outputs, list(forward.hidden_states))
