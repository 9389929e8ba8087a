"""Personalised dialogue, in the files of LAPDOG and ConvAI2: answers with stories that were retrieved and are fused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from bgrpo.errors import UserError
from bgrpo.tasks.answers import normalized
from bgrpo.tasks.base import LoadedProblems, Outcome, Problem
from bgrpo.tasks.dialogue.exchanges import Exchange, Story, exchange_of
from bgrpo.tasks.dialogue.forms import PLACE, filled
from bgrpo.tasks.dialogue.retrieval import EncoderRetriever, Retriever, WordRetriever, read_corpus
from bgrpo.tasks.text.records import read_records

RetrieveBy = Literal["persona", "context", "all"]
QUERY = "dialog with R's persona: {question} R: <extra_id_0>"
PASSAGE = "{query} story title: {title} story: {text}"
SEARCHED = "{title} {text}"
ANSWER_PREFIX = "<extra_id_0>"
MOST_STORIES = 100


class DialogueTask:
    """Implements :class:`bgrpo.tasks.base.Task`, without a generator.

    Each row is one exchange, see :func:`bgrpo.tasks.dialogue.exchanges.exchange_of`. The policy reads ``n_context``
    stories with it, each apart: those that came with the row as ``passages``, or else the best of the corpus.

    Args:
        corpus: file of the stories, ``{"id": …, "title": …, "text": …}`` in each row.
        n_context: stories that are read, at most; the policy needs an encoder.
        closed_book: no story is read; the policy may be any.
        retrieve_by: what stories are searched with; where a row lacks it, with the whole question.
        query: of the prompt, with ``{question}``.
        passage: of each text that is read, with ``{query}``, ``{title}`` and ``{text}``.
        searched: of what is searched of a story, with ``{title}`` and ``{text}``.
        answer_prefix: what the policy writes before an answer; no score sees it. Empty: nothing.
        encoder: a sentence encoder that finds stories, a directory or a model id of the Hub; default: BM25 does.
    """

    name = "dialogue"

    def __init__(
        self,
        corpus: str | None = None,
        n_context: int = 6,
        closed_book: bool = False,
        retrieve_by: str = "persona",
        query: str = QUERY,
        passage: str = PASSAGE,
        searched: str = SEARCHED,
        answer_prefix: str = ANSWER_PREFIX,
        encoder: str | None = None,
    ) -> None:
        if corpus is not None and not isinstance(corpus, str):
            raise UserError(f"task.options.corpus={corpus!r}: expected the name of a file")
        if encoder is not None and not isinstance(encoder, str):
            raise UserError(f"task.options.encoder={encoder!r}: expected the folder of a sentence encoder, or its id")
        if isinstance(n_context, bool) or not isinstance(n_context, int) or not 1 <= n_context <= MOST_STORIES:
            raise UserError(f"task.options.n_context={n_context!r}: expected a whole number from 1 to {MOST_STORIES}")
        if not isinstance(closed_book, bool):
            raise UserError(f"task.options.closed_book={closed_book!r}: expected true or false")
        if retrieve_by not in get_args(RetrieveBy):
            known = ", ".join(get_args(RetrieveBy))
            raise UserError(f"task.options.retrieve_by={retrieve_by!r}: expected one of {known}")
        if not isinstance(answer_prefix, str):
            raise UserError(f"task.options.answer_prefix={answer_prefix!r}: expected text")
        self._query = _form("query", query, "question")
        self._passage = _form("passage", passage, "query", "title", "text")
        self._searched = _form("searched", searched, "title", "text")
        self._corpus, self._n_context, self._closed_book = corpus, n_context, closed_book
        self._by, self._prefix, self._encoder = retrieve_by, answer_prefix, encoder
        self._retriever: Retriever | None = None

    def check(self, problem: Problem, completion: str) -> Outcome:
        """``correct`` when it is a known answer, as the SQuAD evaluation compares them; else ``wrong``."""
        right = normalized(completion) in [normalized(answer) for answer in problem.answers]
        return Outcome.CORRECT if right else Outcome.WRONG

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        """One problem per row, with the stories that the policy will read.

        Raises:
            UserError: file or corpus cannot be read, hold no row, or a row does not fit (with its place); no corpus,
                where stories are to be retrieved.
        """
        rows: list[tuple[str, int, dict[str, Any], Exchange]] = []
        for place, number, row in read_records(str(path), "train" if for_training else "test"):
            try:
                rows.append((place, number, row, exchange_of(row)))
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
        if not rows:
            raise UserError(f"{path}: holds no row: expected one exchange per row")
        stories = [[]] * len(rows) if self._closed_book else self._stories(rows)
        problems = [
            self._problem(number, row, exchange, read)
            for (_, number, row, exchange), read in zip(rows, stories, strict=True)
        ]
        return LoadedProblems(problems)

    def _stories(self, rows: Sequence[tuple[str, int, dict[str, Any], Exchange]]) -> list[list[Story]]:
        """What is read with each row."""
        found = [list(exchange.stories[: self._n_context]) for _, _, _, exchange in rows]
        lacking = [index for index, stories in enumerate(found) if not stories]
        if not lacking:
            return found
        if self._corpus is None:
            raise UserError(
                f"{rows[lacking[0]][0]}: has no 'passages': name a corpus of stories with task.options.corpus, or set "
                "task.options.closed_book=true"
            )
        if self._retriever is None:
            stories = read_corpus(Path(self._corpus))
            if self._encoder is None:
                self._retriever = WordRetriever(stories, self._searched)
            else:
                self._retriever = EncoderRetriever(stories, self._searched, self._encoder)
        texts = [self._search_text(rows[index][3]) for index in lacking]
        for index, stories in zip(lacking, self._retriever.find(texts, self._n_context), strict=True):
            found[index] = stories
        return found

    def _search_text(self, exchange: Exchange) -> str:
        part = {"persona": exchange.persona, "context": exchange.context}.get(self._by, "")
        return part or f"{exchange.persona} {exchange.context}"

    def _problem(self, number: int, row: dict[str, Any], exchange: Exchange, stories: Sequence[Story]) -> Problem:
        query = filled(self._query, question=exchange.question)
        passages = tuple(filled(self._passage, query=query, title=each.title, text=each.text) for each in stories)
        fields = {name: cell for name, cell in row.items() if name != "passages" and _fits_json(cell)}
        fields |= {"persona": exchange.persona, "context": exchange.context}
        fields["passages"] = [{"id": each.id, "title": each.title, "text": each.text} for each in stories]
        answer, *others = exchange.answers or ("",)
        return Problem(
            query,
            answer,
            alternatives=tuple(others),
            fields=fields,
            passages=passages,
            answer_prefix=self._prefix,
            line=number,
        )


def _form(option: str, form: Any, *names: str) -> str:
    """A checked form of texts: it fills in what it may, and its most important part for sure."""
    if not isinstance(form, str):
        raise UserError(f"task.options.{option}={form!r}: expected text")
    found = [place[1:-1] for place in PLACE.findall(form)]
    if set(found) - set(names) or names[0 if option != "searched" else -1] not in found:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise UserError(f"task.options.{option}={form!r}: expected text with {known} and no other place to fill")
    return form


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
