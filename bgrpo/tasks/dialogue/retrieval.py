"""Stories from a corpus for a text, by BM25 (Robertson et al. 1995; the library bm25s)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgrpo.errors import UserError
from bgrpo.tasks.dialogue.exchanges import Story, story_of
from bgrpo.tasks.dialogue.forms import filled
from bgrpo.tasks.text.records import read_records


def read_corpus(path: Path) -> list[Story]:
    """The stories of a file of ``{"id": …, "title": …, "text": …}``.

    Raises:
        UserError: it cannot be read, holds no story, or a row does not fit, with its place.
    """
    stories = []
    for place, _, row in read_records(str(path), "train"):
        try:
            stories.append(story_of(row))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not stories:
        raise UserError(f"{path}: holds no story: expected one per row")
    return stories


class Retriever:
    """Finds the stories that share the rarest words with a text. The same corpus and text give the same stories.

    Args:
        stories: at least one.
        form: of the text that is searched, with ``{title}`` and ``{text}``.
    """

    def __init__(self, stories: Sequence[Story], form: str) -> None:
        import bm25s

        self._stories = stories
        self._index = bm25s.BM25()
        texts = [filled(form, title=story.title, text=story.text) for story in stories]
        words = _words(texts)
        if not any(words):
            raise UserError("the corpus holds no word that can be searched for")
        self._index.index(words, show_progress=False)

    def find(self, texts: Sequence[str], count: int) -> list[list[Story]]:
        """For each text the best stories, best first, of equal ones the earlier; fewer only where the corpus is small.

        Args:
            texts: any number.
            count: stories for each.
        """
        return [[self._stories[place] for place in self._places(words, count)] for words in _words(texts)]

    def _places(self, words: list[str], count: int) -> np.ndarray:
        scores_N = self._index.get_scores(words) if words else np.zeros(len(self._stories), np.float32)
        count = min(count, len(scores_N))
        least = np.partition(scores_N, -count)[-count]
        candidates = np.flatnonzero(scores_N >= least)
        return candidates[np.argsort(-scores_N[candidates], kind="stable")][:count]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    found: Any = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return found
