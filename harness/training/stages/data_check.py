"""Effects of the tokenizer on a suite's rows: how many texts exceed the limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any

from ...api.contracts import Suite
from ...core.data import Demonstration, Labelled, Pair, Prompt
from ...core.data_report import Cut, Measured
from ...core.errors import UsageError
from ...models.hub_format import limits_of
from ...models.tokens import Tokens

MEASURED = 2000  # of each kind (prompts, demonstrations, pairs), how many are tokenised
JUDGED = 500  # of the rows of the judge, how many are tokenised once more for their own figures
WHOLE = 0.95  # share of the texts that a suggested limit leaves whole


def check_positions(measured: Measured, model: Path | str) -> None:
    """Refuse limits that exceed the positions of the model, where prompts are long enough for that.

    Raises:
        UsageError: A prompt and an answer to it may be longer than the model can read.
    """
    positions = limits_of(model).positions
    prompts, answer = measured.prompts, measured.completions.limit
    longest = min(prompts.longest, prompts.limit) if measured.all_rows else prompts.limit
    if positions is None or longest + answer <= positions:
        return
    fitting = positions - answer
    advice = f" --suite-set max_prompt_tokens={fitting} fits." if fitting > 0 else ""
    raise UsageError(
        f"max_prompt_tokens = {prompts.limit} and max_completion_tokens = {answer}: prompts of"
        f" {longest} tokens and their answers take {longest + answer} positions, and the model"
        f" {model} has {positions}.{advice}"
    )


def check_vocabulary(largest: int, tokens: Tokens, model: Path | str) -> None:
    """Refuse a tokenizer whose tokens the model has no embedding for.

    Args:
        largest: The largest token id of the data; the tokens that end an answer are looked at too.
        tokens: The tokenizer.
        model: Folder or hub id of the model.

    Raises:
        UsageError: A token that is needed has no embedding.
    """
    rows, needed = limits_of(model).vocabulary, max(largest, tokens.eos, tokens.turn_end)
    if rows is None or needed < rows:
        return
    name = tokens.tokenizer.convert_ids_to_tokens(needed)
    raise UsageError(
        f"The model {model} has {rows} embeddings, and its tokenizer has the token {name!r} with"
        f" the id {needed}: the token was added to the tokenizer alone. Use the tokenizer that the"
        " model was trained with, or a model whose embeddings were resized"
        " (resize_token_embeddings of transformers)."
    )


def measure(suite: Suite, tokens: Tokens) -> Measured:
    """Return how many texts of a suite are cut, and how many pairs become equal.

    Of large data MEASURED evenly spaced prompts, demonstrations and pairs stand for all.
    """
    whole = copy(tokens)
    whole.max_prompt = whole.max_completion = None
    prompts, pairs, answers = _prompts(suite), _pairs(suite), _answers(suite)
    some, some_pairs = _spaced(prompts), _spaced(pairs)
    prompt_ids = [whole.prompt_ids(p.text) for p in some]
    pair_ids = [_pair_ids(whole, pair) for pair in some_pairs]
    ids = [*chain.from_iterable(pair_ids)]
    ids += [whole.completion_ids(a.prompt.text, a.completion) for a in _spaced(answers)]
    limit = tokens.max_completion
    judged = _spaced(suite.judge_preferences(), JUDGED)
    judged_prompts = [whole.prompt_ids(row.prompt.text) for row in judged]
    judged_ids = [ids for row in judged for ids in _answers_of(whole, row)]
    return Measured(
        all_rows=len(some) == len(prompts) and len(some_pairs) == len(pairs),
        template=any(tokens.conversation(p.text) is not None for p in some),
        form=tokens.form_of([p.text for p in some]),
        prompts=_cut("max_prompt_tokens", tokens.max_prompt, prompt_ids),
        completions=_cut("max_completion_tokens", limit, ids),
        pairs=len(some_pairs),
        equal_pairs=sum(chosen[:limit] == rejected[:limit] for chosen, rejected in pair_ids),
        unknown=_share_of(tokens.tokenizer.unk_token_id, [*prompt_ids, *ids]),
        largest=max(chain.from_iterable([*prompt_ids, *ids]), default=0),
        judged_prompts=_cut("max_prompt_tokens", tokens.max_prompt, judged_prompts)
        if judged
        else None,
        judged_completions=_cut("max_completion_tokens", limit, judged_ids) if judged else None,
    )


def _prompts(suite: Suite) -> list[Prompt]:
    """Return the distinct prompts of training, demonstrations and evaluation."""
    splits = ("train", "demonstrations", "validation", "test")
    every = [p for split in splits for p in suite.prompts(split)]
    every += [pair.prompt for pair in suite.judge_preferences()]
    return list({prompt.id: prompt for prompt in every}.values())


def _pairs(suite: Suite) -> list[Pair]:
    """Return the pairs of the methods and of the judge."""
    every = [*(suite.preferences() or ()), *suite.judge_preferences()]
    return [row for row in every if isinstance(row, Pair)]


def _answers(suite: Suite) -> Sequence[Demonstration | Labelled]:
    """Return the single answers of the methods and of the judge; none where there are pairs."""
    every = [*suite.labelled(), *suite.judge_preferences()]
    labelled = [row for row in every if isinstance(row, Labelled)]
    return labelled or ([] if _pairs(suite) else suite.demonstrations())


def _spaced(items: Sequence[Any], most: int = 0) -> Sequence[Any]:
    """Return at most `most` items, or MEASURED, evenly spaced."""
    step = -(-len(items) // (most or MEASURED)) or 1
    return items[::step]


def _answers_of(tokens: Tokens, row: Pair | Labelled) -> Sequence[list[int]]:
    """Return the ids of the answers of a pair, or of a labelled answer."""
    if isinstance(row, Pair):
        return _pair_ids(tokens, row)
    return [tokens.completion_ids(row.prompt.text, row.completion)]


def _pair_ids(tokens: Tokens, pair: Pair) -> tuple[list[int], list[int]]:
    text = pair.prompt.text
    return tokens.completion_ids(text, pair.chosen), tokens.completion_ids(text, pair.rejected)


def _share_of(token: int | None, texts: Iterable[Sequence[int]]) -> float:
    """Return the share of the most frequent token."""
    every = list(chain.from_iterable(texts))
    return every.count(token) / len(every) if every and token is not None else 0.0


def _cut(option: str, limit: int | None, texts: Iterable[Sequence[int]]) -> Cut:
    ordered = sorted(map(len, texts))
    enough = ordered[min(len(ordered) - 1, int(WHOLE * len(ordered)))] if ordered else 0
    longest = ordered[-1] if ordered else 0
    limit = limit or longest
    return Cut(option, limit, len(ordered), sum(n > limit for n in ordered), enough, longest)
