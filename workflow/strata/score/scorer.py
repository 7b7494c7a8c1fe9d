"""Scorer: the model that lm-eval asks. Requests are made and cut by lm-eval's own code; the engine answers them.

This module needs lm-eval and torch: import it where a model is about to be loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.models.huggingface import HFLM

from strata.errors import EvaluationError
from strata.progress import bar
from strata.score.answers import Answers
from strata.score.engine import SCORED, answer, can_share
from strata.score.tree import Request, cut, plan


class Scorer(HFLM):  # type: ignore[misc]
    """HFLM, but for how it comes to tokens and log-likelihoods: texts are encoded together, and once; a context is read
    once for all its continuations.

    Args:
        answers: where answers are kept, so that a run that was stopped goes on behind them.
        name: of the model, for the progress bar.
    """

    def __init__(self, *arguments: Any, answers: Answers, name: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._answers = answers
        self._name = name
        self._encoded: dict[str, list[int]] = {}
        self._tasks: list[str] = []

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        texts: dict[str, None] = {}
        for context, continuation in (request.args for request in requests):
            bare = context.rstrip()  # lm-eval moves spaces at the end of a context to its continuation
            texts |= dict.fromkeys((bare, context + continuation) if context else ())
        self._encode(list(texts))
        self._tasks = [request.task_name for request in requests]
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        self._encode(texts)
        windows = [
            [
                utils.make_disjoint_window(window)
                for window in utils.get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
                )
            ]
            for text in texts
        ]
        self._tasks = [r.task_name for r, found in zip(requests, windows, strict=True) for _ in found]
        answers = iter(self._loglikelihood_tokens([(None, *window) for found in windows for window in found]))
        return [sum(next(answers)[0] for _ in found) for found in windows]

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        plain = not arguments and not options
        if plain and string in self._encoded:
            return self._encoded[string]
        return list(super().tok_encode(string, *arguments, **options))

    def _encode(self, texts: Sequence[str]) -> None:
        """Encode texts together, as `tok_encode` does each."""
        self._encoded = {}
        start = self.tokenizer.decode(self.prefix_token_id)
        alike = [text for text in texts if not text.startswith(start)]  # the others may get no second BOS
        if alike and self.tokenizer.is_fast:
            options = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            found = self.tokenizer(alike, return_attention_mask=False, **options).input_ids
            self._encoded = dict(zip(alike, found, strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        asked: list[Request] = []
        for text, context, continuation in requests:
            if not context or not continuation or len(continuation) > self.max_length:
                raise EvaluationError(
                    "a request cannot be scored", where=self._tasks[len(asked)],
                    expected=f"a context, and a continuation of 1 to {self.max_length} tokens",
                    got=f"{len(context)} and {len(continuation)} tokens: {text!r}"[:500],
                )  # fmt: skip
            asked.append(cut(Request(tuple(context), tuple(continuation)), self.max_length))
        shared = can_share(self.model.config, self.max_length)
        batches = plan(asked, self._tasks, int(self.batch_size), SCORED, shared)
        found = self._answers.begin(asked, batches)
        total = sum(len(row.tokens) for batch in batches for row in batch.rows)
        with bar(self._name, total, "tok") as progress:
            progress.update(sum(len(row.tokens) for batch in batches[: len(found)] for row in batch.rows))
            for batch, answered in zip(batches[len(found) :], answer(self.model, batches, len(found)), strict=True):
                self._answers.add(answered)
                found.append(answered)
                progress.update(sum(len(row.tokens) for row in batch.rows))
        together = {number: one for part in found for number, one in part.items()}
        return [(together[number].loglikelihood, together[number].greedy) for number in range(len(asked))]
