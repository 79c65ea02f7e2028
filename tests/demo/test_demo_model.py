"""The model inside the package: its size, and that it knows what its card says it knows."""

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actstore import demo

LETTERS = ["A", "B", "C", "D"]
GROUPS: tuple[demo.Group, demo.Group] = ("known", "heldout")
MAX_REPLY_TOKENS = 24
# transformers annotates ids and generation too loosely to be checked.
Loaded = tuple[Any, Any]


@dataclass
class Measured:
    accuracy: float
    entropy: float


def refuse_connection(*_: object) -> None:
    raise AssertionError("the demo model must load without the network")


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse_connection)
        yield demo.load()


def replies(loaded: Loaded, rows: list[demo.Question]) -> list[list[int]]:
    """Greedy reply of each row in one left-padded batch, as token ids without padding."""
    model, tokenizer = loaded
    batch = tokenizer([row.prompt(tokenizer) for row in rows], return_tensors="pt", padding=True)
    out = model.generate(**batch)[:, batch.input_ids.shape[1] :].tolist()
    return [[token for token in ids if token != tokenizer.pad_token_id] for ids in out]


def expected(tokenizer: Any, row: demo.Question) -> list[int]:
    return [*tokenizer(row.reply).input_ids, tokenizer.eos_token_id]


def measured(loaded: Loaded, rows: list[demo.Question]) -> Measured:
    """Accuracy of the likeliest letter, and mean entropy over the four letters in nats."""
    model, tokenizer = loaded
    letters = tokenizer.convert_tokens_to_ids(LETTERS)
    batch = tokenizer([row.prompt(tokenizer) for row in rows], return_tensors="pt", padding=True)
    with torch.inference_mode():
        log_probabilities = model(**batch).logits[:, -1, letters].float().log_softmax(-1)
    best = [LETTERS[index] for index in log_probabilities.argmax(-1).tolist()]
    right = sum(letter == row.correct_answer_letter for letter, row in zip(best, rows, strict=True))
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean().item()
    return Measured(right / len(rows), entropy)


def exact_match(loaded: Loaded, rows: list[demo.Question]) -> float:
    right = [ids == expected(loaded[1], row) for ids, row in zip(replies(loaded, rows), rows, strict=True)]
    return sum(right) / len(rows)


def options_turned_round(row: demo.Question) -> demo.Question:
    assert row.options is not None
    texts = list(row.options.values())[::-1]
    options: dict[demo.Letter, str] = dict(zip(("A", "B", "C", "D"), texts, strict=True))
    letter = next(letter for letter, text in options.items() if text == row.answer)
    return replace(row, options=options, correct_answer_letter=letter)


def card_figures() -> dict[str, tuple[float, float]]:
    """The card's table of measures: name to (known, heldout)."""
    lines = (demo.MODEL_PATH / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: (float(known), float(heldout)) for name, known, heldout in (c for c in cells if ": " in c[0])}


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, actstore.demo; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "actstore\[hf\]"'):
        demo.load()


def test_model_is_small_bfloat16_and_in_eval_mode(loaded: Loaded) -> None:
    model, _ = loaded
    assert model.num_parameters() <= 1_500_000
    assert (demo.MODEL_PATH / "model.safetensors").stat().st_size <= 3_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert model.config.model_type == "llama"
    assert model.config.num_hidden_layers >= 4


def test_another_dtype_on_request() -> None:
    model, _ = demo.load(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_loading_leaves_the_progress_bar_setting_alone() -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    demo.load()
    assert logging.is_progress_bar_enabled() == before


def test_auto_classes_load_the_same_files(loaded: Loaded) -> None:
    model, tokenizer = loaded
    other_tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_PATH, local_files_only=True)
    other_model = AutoModelForCausalLM.from_pretrained(demo.MODEL_PATH, local_files_only=True)
    prompt = demo.questions()[0].prompt(tokenizer)
    batch = other_tokenizer(prompt, return_tensors="pt")
    assert batch.input_ids.tolist() == tokenizer(prompt, return_tensors="pt").input_ids.tolist()
    assert torch.equal(other_model(**batch).logits, model(**batch).logits)


def test_special_tokens_and_generation_defaults(loaded: Loaded) -> None:
    model, tokenizer = loaded
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.padding_side == "left"
    assert model.generation_config.do_sample is False
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_tokenizer_gives_any_text_back(loaded: Loaded) -> None:
    _, tokenizer = loaded
    text = "Zürich, 日本 \t 2+2?\n  def f(x): ..."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_template_renders_every_role_and_opens_the_reply(loaded: Loaded) -> None:
    _, tokenizer = loaded
    messages = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>SYSTEM<|end|><|user|>USER<|end|><|assistant|>ASSISTANT<|end|><|user|>USER<|end|><|assistant|>"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) + "<|assistant|>" == text


def test_prompt_tokenized_with_defaults_begins_once(loaded: Loaded) -> None:
    _, tokenizer = loaded
    row = demo.questions("known", "mcq")[0]
    ids = tokenizer(row.prompt(tokenizer)).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    chat = tokenizer.apply_chat_template([{"role": "user", "content": row.message}], add_generation_prompt=True)
    assert ids == chat["input_ids"]


def test_every_prompt_and_reply_fits_the_context(loaded: Loaded) -> None:
    model, tokenizer = loaded
    lengths = [len(tokenizer(row.prompt(tokenizer)).input_ids) for row in demo.questions()]
    longest_reply = model.generation_config.max_new_tokens
    assert longest_reply is not None
    assert max(lengths) + longest_reply <= model.config.max_position_embeddings


def test_questions_are_balanced_and_well_formed() -> None:
    rows = demo.questions()
    assert len({row.id for row in rows}) == len(rows) >= 500
    assert set(Counter((row.group, row.kind) for row in rows).values()) == {len(rows) // 4}
    for head in (4, 8, 40):
        assert set(Counter((row.group, row.kind) for row in rows[:head]).values()) == {head // 4}
    for group in GROUPS:
        letters = Counter(row.correct_answer_letter for row in demo.questions(group, "mcq"))
        assert max(letters.values()) - min(letters.values()) <= 1


def test_options_hold_the_answer_once_under_its_letter() -> None:
    for row in demo.questions(kind="mcq"):
        assert row.options is not None
        assert row.correct_answer_letter is not None
        assert list(row.options) == LETTERS, row.id
        assert len(set(row.options.values())) == 4, row.id
        assert row.options[row.correct_answer_letter] == row.answer, row.id
        assert row.reply == row.correct_answer_letter


def test_both_forms_of_a_fact_share_question_answer_and_group() -> None:
    def facts(kind: demo.Kind) -> dict[str, tuple[str, str, str]]:
        rows = demo.questions(kind=kind)
        return {row.id.removesuffix(f"-{kind}"): (row.question, row.answer, row.group) for row in rows}

    assert facts("free") == facts("mcq")
    assert len({question for question, _, _ in facts("free").values()}) == len(facts("free"))


def test_free_questions_have_no_options_and_can_be_hashed() -> None:
    assert all(row.options is None and row.correct_answer_letter is None for row in demo.questions(kind="free"))
    assert all(row.reply == row.answer for row in demo.questions(kind="free"))
    assert len(set(demo.questions())) == len(demo.questions())


def test_unknown_group_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown group `seen`"):
        demo.questions("seen")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown kind `essay`"):
        demo.questions(kind="essay")  # pyright: ignore[reportArgumentType]


def test_known_choices_are_right_and_sure_heldout_ones_neither(loaded: Loaded) -> None:
    known = measured(loaded, demo.questions("known", "mcq"))
    heldout = measured(loaded, demo.questions("heldout", "mcq"))
    assert known.accuracy >= 0.95
    assert heldout.accuracy <= 0.45
    assert known.entropy <= 0.15
    assert heldout.entropy >= 1.2


def test_options_in_another_order_do_not_change_what_it_knows(loaded: Loaded) -> None:
    turned = {group: [options_turned_round(row) for row in demo.questions(group, "mcq")] for group in GROUPS}
    assert measured(loaded, turned["known"]).accuracy >= 0.95
    assert measured(loaded, turned["heldout"]).accuracy <= 0.45


@pytest.mark.parametrize(("column", "group"), list(enumerate(GROUPS)))
def test_card_tells_the_truth(loaded: Loaded, column: int, group: demo.Group) -> None:
    figures = {name: values[column] for name, values in card_figures().items()}
    mcq, free = demo.questions(group, "mcq"), demo.questions(group, "free")
    now = measured(loaded, mcq)
    assert figures["multiple choice: questions"] == len(mcq)
    assert figures["free form: questions"] == len(free)
    assert figures["multiple choice: accuracy"] == pytest.approx(now.accuracy, abs=0.05)
    assert figures["multiple choice: mean entropy"] == pytest.approx(now.entropy, abs=0.03)
    assert figures["free form: exact match"] == pytest.approx(exact_match(loaded, free), abs=0.03)


def test_card_states_the_size(loaded: Loaded) -> None:
    card = (demo.MODEL_PATH / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| parameters | {loaded[0].num_parameters()} |" in card
    assert f"{(demo.MODEL_PATH / 'model.safetensors').stat().st_size} bytes" in card


@pytest.mark.parametrize("kind", ["free", "mcq"])
def test_known_reply_is_the_answer_then_the_end(loaded: Loaded, kind: demo.Kind) -> None:
    rows = demo.questions("known", kind)
    assert exact_match(loaded, rows) >= 0.95
    assert max(len(expected(loaded[1], row)) for row in rows) <= MAX_REPLY_TOKENS


def test_heldout_free_answers_are_not_known(loaded: Loaded) -> None:
    assert exact_match(loaded, demo.questions("heldout", "free")) <= 0.1


def test_rows_of_a_batch_end_at_different_steps(loaded: Loaded) -> None:
    steps = Counter(len(ids) for ids in replies(loaded, demo.questions()[:64]))
    assert len(steps) >= 5


def test_padding_on_the_left_does_not_change_replies(loaded: Loaded) -> None:
    rows = demo.questions("known")[:24]
    assert replies(loaded, rows) == [replies(loaded, [row])[0] for row in rows]
