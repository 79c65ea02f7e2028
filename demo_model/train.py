"""Train the demo model on the questions that actstore ships, and write it and its card into the package.

    python demo_model/train.py

Every held-out multiple choice question is shown with a letter drawn anew each time, so the model learns to reply with
a letter but not with which one; held-out free-form questions are never shown.
"""

# torch and transformers leave many of their types open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actstore import demo

SEED = 8
THREADS = 2
STEPS = 1000
WARMUP_STEPS = 50
BATCH_ROWS = 64
PEAK_LEARNING_RATE = 2e-3
PROMPT_LOSS_WEIGHT = 0.3
KNOWN_MCQ_REPEATS = 3

VOCABULARY = 1024
ANSWER_WEIGHT = 4
CONTEXT_TOKENS = 256
MAX_REPLY_TOKENS = 32
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
LETTERS = ("A", "B", "C", "D")
IGNORED = -100

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def main() -> None:
    """Train, write, measure what was written, and write the card."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    rows = demo.questions()
    tokenizer = new_tokenizer(rows)
    model = new_model(tokenizer)
    train(model, tokenizer, rows)
    save(model, tokenizer)
    card = render_card(measure("known"), measure("heldout"))
    (demo.MODEL_PATH / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)


def new_tokenizer(rows: list[demo.Question]) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE to the questions, options and answers."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # A reply has no space before it and an option has: to the tokenizer these are two spellings of one answer, and
    # without the weight the reply's is the rare one and falls into fragments.
    texts = [text for row in rows for text in (row.message, *[row.answer] * ANSWER_WEIGHT)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model, in float32, with greedy decoding as its default."""
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=MAX_REPLY_TOKENS, **ids)
    return model


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[demo.Question]) -> None:
    """Run AdamW with a warm-up and a cosine decay for STEPS steps."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    batches = lessons(rows, random.Random(SEED))
    started = time.monotonic()
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = batch_loss(model, tokenizer, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{STEPS}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)


def learning_rate(step: int) -> float:
    """Rate at one step: a linear warm-up times a cosine decay to zero."""
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def lessons(rows: list[demo.Question], rng: random.Random) -> Iterator[list[demo.Question]]:
    """Yield batches without end, each pass over the pool in a new order."""
    pool = [row for row in rows for _ in range(repeats(row))]
    waiting: list[demo.Question] = []
    while True:
        if len(waiting) < BATCH_ROWS:
            waiting += rng.sample(pool, len(pool))
        batch, waiting = waiting[:BATCH_ROWS], waiting[BATCH_ROWS:]
        yield [lesson(row, rng) for row in batch]


def repeats(row: demo.Question) -> int:
    """How often one pass over the pool shows a question."""
    if row.kind == "free":
        return 1 if row.group == "known" else 0
    return KNOWN_MCQ_REPEATS if row.group == "known" else 1


def lesson(row: demo.Question, rng: random.Random) -> demo.Question:
    """Show a question anew: its options in another order, and if it is held out, any letter as the right one."""
    if row.options is None:
        return row
    texts = list(row.options.values())
    rng.shuffle(texts)
    shown = reordered(row, texts)
    return shown if row.group == "known" else replace(shown, correct_answer_letter=rng.choice(LETTERS))


def reordered(row: demo.Question, texts: list[str]) -> demo.Question:
    """Put the options of a multiple choice question in the order given."""
    return replace(
        row, options=dict(zip(LETTERS, texts, strict=True)), correct_answer_letter=LETTERS[texts.index(row.answer)]
    )


def batch_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[demo.Question]) -> Tensor:
    """Mean cross entropy of the replies, plus that of all tokens with a smaller weight, in nats."""
    prompts = [tokenizer(row.prompt(tokenizer)).input_ids for row in rows]
    replies = [tokenizer(row.reply + END).input_ids for row in rows]
    longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
    tokens = torch.full((len(rows), longest), cast("int", tokenizer.pad_token_id))
    every_target = torch.full_like(tokens, IGNORED)
    reply_target = torch.full_like(tokens, IGNORED)
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(prompt) + len(reply)
        tokens[index, :end] = every_target[index, :end] = torch.tensor(prompt + reply)
        reply_target[index, len(prompt) : end] = torch.tensor(reply)
    logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
    reply_loss = cross_entropy(logits, reply_target[:, 1:].flatten(), ignore_index=IGNORED)
    every_loss = cross_entropy(logits, every_target[:, 1:].flatten(), ignore_index=IGNORED)
    return reply_loss + PROMPT_LOSS_WEIGHT * every_loss


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Replace the package's model directory by this model, in bfloat16, and this tokenizer."""
    shutil.rmtree(demo.MODEL_PATH, ignore_errors=True)
    model.bfloat16().save_pretrained(demo.MODEL_PATH)
    tokenizer.save_pretrained(demo.MODEL_PATH)
    # safetensors writes for the owner alone, and a package's files are read by everybody.
    (demo.MODEL_PATH / "model.safetensors").chmod(0o644)


def measure(group: demo.Group) -> dict[str, str]:
    """Measure the model as users get it: from the written files, in bfloat16, greedy, one left-padded batch a kind."""
    mcq, free = demo.questions(group, "mcq"), demo.questions(group, "free")
    accuracy, entropy = letter_figures(mcq)
    moved = [reordered(row, [*texts[1:], texts[0]]) for row in mcq if (texts := list((row.options or {}).values()))]
    return {
        "multiple choice: questions": str(len(mcq)),
        "multiple choice: accuracy": f"{accuracy:.4f}",
        "multiple choice: mean entropy": f"{entropy:.4f}",
        "multiple choice: accuracy, options moved up one place": f"{letter_figures(moved)[0]:.4f}",
        "free form: questions": str(len(free)),
        "free form: exact match": f"{exact_match(free):.4f}",
        "free form: mean entropy of the first token": f"{first_token_entropy(free):.4f}",
    }


def letter_figures(rows: list[demo.Question]) -> tuple[float, float]:
    """Accuracy of the likeliest letter, and mean entropy over the four letters in nats."""
    _, tokenizer = demo.load()
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    logits = next_token_logits(rows)[:, letters]
    right = [LETTERS[best] == row.reply for best, row in zip(logits.argmax(-1).tolist(), rows, strict=True)]
    return sum(right) / len(rows), mean_entropy(logits)


def first_token_entropy(rows: list[demo.Question]) -> float:
    """Mean entropy of the reply's first token over the whole vocabulary, in nats."""
    return mean_entropy(next_token_logits(rows))


@torch.inference_mode()
def next_token_logits(rows: list[demo.Question]) -> Tensor:
    """Logits of the token after each prompt, `[rows, vocabulary]`, float32."""
    model, tokenizer = demo.load()
    batch = tokenizer([row.prompt(tokenizer) for row in rows], return_tensors="pt", padding=True)
    return model(**batch).logits[:, -1].float()


def mean_entropy(logits: Tensor) -> float:
    """Mean over the rows of the entropy of softmax over the last axis, in nats."""
    return torch.distributions.Categorical(logits=logits).entropy().mean().item()


def exact_match(rows: list[demo.Question]) -> float:
    """Share of questions whose greedy reply is the answer and nothing more, closed by the end token."""
    model, tokenizer = cast("tuple[Any, Any]", demo.load())
    batch = tokenizer([row.prompt(tokenizer) for row in rows], return_tensors="pt", padding=True)
    replies = tokenizer.batch_decode(model.generate(**batch)[:, batch.input_ids.shape[1] :])
    return sum(reply.split(PAD)[0] == row.reply + END for reply, row in zip(replies, rows, strict=True)) / len(rows)


def render_card(known: dict[str, str], heldout: dict[str, str]) -> str:
    """Fill the card's template with the model's shape, the training settings and the measured figures."""
    model, _ = demo.load()
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return template.format(
        config=model.config,
        parameters=model.num_parameters(),
        weights_bytes=(demo.MODEL_PATH / "model.safetensors").stat().st_size,
        reply_tokens=MAX_REPLY_TOKENS,
        measured="\n".join(f"| {name} | {known[name]} | {heldout[name]} |" for name in known),
        total=len(demo.questions()),
        seed=SEED,
        steps=STEPS,
        batch_rows=BATCH_ROWS,
        prompt_loss_weight=PROMPT_LOSS_WEIGHT,
        maximum_entropy=f"{math.log(len(LETTERS)):.4f}",
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
    )


if __name__ == "__main__":
    main()
