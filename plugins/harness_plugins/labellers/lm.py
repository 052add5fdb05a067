"""A local language model as annotator: the log-probabilities of its verdict tokens give a soft
label.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import Principle, Prompt, UsageError, hookimpl, torch

from .annotator import Question, WritingAnnotator


@dataclass
class LMAnnotator(WritingAnnotator):
    """Asks a local AutoModelForCausalLM which completion is better: p is the softmax of its two
    verdicts.
    """

    name = "lm"

    model: str = ""  # a folder in Hugging Face format, or a hub id
    batch_size: int = 8  # questions per forward pass
    max_revision_tokens: int = 256  # longest critique or revision in tokens
    device: str = "cpu"  # where the model runs

    def check(self):
        super().check()
        if not self.model:
            raise ValueError("the labeller lm needs a model: --labeller-set model=FOLDER_OR_HUB_ID")
        if self.batch_size < 1 or self.max_revision_tokens < 1:
            raise ValueError("batch_size and max_revision_tokens must be at least 1")

    @cached_property
    def loaded(self):
        """Model and tokenizer."""
        from harness.models.loading import load_causal, load_tokenizer

        return load_causal(self.model).to(self.device), load_tokenizer(self.model)

    @cached_property
    def weights(self) -> str:
        """The digest of the model's weights."""
        from harness.models.loading import weights_digest

        return weights_digest(self.loaded[0])

    def data_files(self):
        """Return the files of the model's folder; a hub id stands for itself until its weights are
        hashed.
        """
        from harness.core.model_folder import model_files

        return model_files(Path(self.model)) if Path(self.model).is_dir() else []

    def identity(self):
        """Return the options, and the weights behind the model's name."""
        options = super().identity() | {"weights": self.weights}
        return {k: v for k, v in options.items() if k not in ("model", "batch_size")}

    def is_judge(self, judge):
        """Return whether the judge names the same model, or holds the same weights."""
        from harness.models.loading import weights_digest

        theirs = getattr(judge, "model", None)
        theirs = weights_digest(theirs) if isinstance(theirs, torch.nn.Module) else theirs
        return theirs is not None and str(theirs) in (self.model, self.weights)

    def prepare(self, suite, judge):
        """Find the tokens of the verdicts after a question."""
        super().prepare(suite, judge)
        self.verdict_ids = self._verdict_ids()

    def answer(self, prompt, questions, rng):
        """Return for each question the probability of the first verdict against the second."""
        self.counts["requests"] += len(questions)
        rows = [self._ids(self.question_text(prompt, question)) for question in questions]
        parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return [p for part in parts for p in self._verdicts(prompt, part)]

    def _verdicts(self, prompt, rows):
        """Return p per row of token ids: softmax over the two verdicts."""
        one, two = self.label_logp(prompt, rows, self.verdict_ids).unbind(1)
        return (one - two).sigmoid().tolist()

    def label_logp(self, prompt, rows, forms):
        """Return log-probabilities (B, V) of verdicts behind rows of token ids.

        The probabilities of a verdict with and without a leading space are added.
        """
        from harness import Batch, PromptBatch
        from harness.models.logprobs import completion_logp

        width, answers = max(map(len, rows)), [i for ids in forms for i in ids]
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device
        )
        shown = PromptBatch([prompt] * len(rows), ids, mask)
        answers = torch.tensor(answers, device=self.device).expand(len(rows), -1)[
            ..., None
        ]  # (B, K, 1)
        with torch.no_grad():
            batch = Batch(
                shown, {"completion_ids": answers, "mask": torch.ones_like(answers).float()}
            )
            logp = completion_logp(self.loaded[0], batch)[..., 0].double()  # (B, K)
        parts = logp.split([len(ids) for ids in forms], 1)
        return torch.stack([part.logsumexp(1) for part in parts], 1)

    @cached_property
    def tokens(self):
        """The tokenizer with the harness's rules: one start token and a fixed clock for chat
        templates. A question that is too long is cut inside the template's text.
        """
        from harness.models.tokens import Tokens

        model, tokenizer = self.loaded
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return Tokens(tokenizer, limit)

    def _posed(self, text):
        """Return a text as a user's message if the model has a chat template, else unchanged."""
        return text if self.tokens.chat is None else [{"role": "user", "content": text}]

    def _text(self, text) -> str:
        chat = self.tokens.chat
        return text if chat is None else chat.prompt(self._posed(text))

    def _ids(self, text):
        """Return token ids, cut at the beginning if they exceed the model's limit."""
        before = self.tokens.cut_prompts
        ids = self.tokens.prompt_ids(self._posed(text))
        self.counts["cut"] += self.tokens.cut_prompts - before
        return ids

    def _verdict_ids(self):
        """Return for each verdict the ids of the single tokens that can begin an answer with it."""
        shown = self.question_text(
            Prompt("probe", "x"), Question("y", "z", Principle("", "", lambda *_: 0.0))
        )
        forms = self.token_forms(shown, self.verdicts)
        if forms is None:
            raise UsageError(
                f"The verdicts {' and '.join(self.verdicts)} are not single tokens of {self.model}."
                " Try others: --labeller-set verdicts=A,B."
            )
        return forms

    def token_forms(self, shown, verdicts) -> list[list[int]] | None:
        """Return for each verdict the ids of the single tokens that can begin a reply with it; None
        if a verdict has no such token.
        """
        rows = [[self._single(shown, form + verdict) for form in ("", " ")] for verdict in verdicts]
        # a form counts only if all verdicts have it, or the comparison would not be fair
        forms = [ids for ids in zip(*rows, strict=True) if None not in ids]
        forms = [ids for ids in forms if len(set(ids)) == len(ids)]
        if not forms:
            return None
        return [sorted({ids[side] for ids in forms}) for side in range(len(rows))]

    def _single(self, shown, answer) -> int | None:
        """Return the single token that an answer adds after a question, or None."""
        _, tokenizer = self.loaded
        head = tokenizer(self._text(shown), add_special_tokens=False)["input_ids"]
        whole = tokenizer(self._text(shown) + answer, add_special_tokens=False)["input_ids"]
        single = (
            len(whole) == len(head) + 1
            and whole[:-1] == head
            and whole[-1] != tokenizer.unk_token_id
        )
        return whole[-1] if single else None

    def write(self, text):
        """Return the model's greedy continuation."""
        model, tokenizer = self.loaded
        self.counts["requests"] += 1
        ids = torch.tensor([self._ids(text)], device=self.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=self.max_revision_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() or None


@hookimpl
def register_labellers(register):
    register(LMAnnotator)
