"""Stories from a corpus for a text: by BM25 (Robertson et al. 1995; the library bm25s), or by a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

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


class Retriever(Protocol):
    """Finds stories. The same corpus and text give the same stories."""

    def find(self, texts: Sequence[str], count: int) -> list[list[Story]]:
        """For each text the best stories, best first, of equal ones the earlier; fewer only where the corpus is small.

        Args:
            texts: any number.
            count: stories for each.
        """
        ...


class WordRetriever:
    """Finds the stories that share the rarest words with a text; see :class:`Retriever`.

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
        """See :class:`Retriever`."""
        return [[self._stories[place] for place in best(self._scores(words), count)] for words in _words(texts)]

    def _scores(self, words: list[str]) -> np.ndarray:
        return self._index.get_scores(words) if words else np.zeros(len(self._stories), np.float32)


class EncoderRetriever:
    """Finds the stories whose embeddings have the largest inner product with a text's, all of them compared.

    An embedding is the mean of the encoder's last layer over all tokens, as of Contriever (Izacard et al. 2022). Each
    text is read alone, up to the encoder's limit.

    Args:
        stories: at least one.
        form: of the text that is searched, with ``{title}`` and ``{text}``.
        path: of an encoder: a directory in Hugging Face format (safetensors only), or a model id of the Hub.

    Raises:
        UserError: the encoder cannot be loaded.
    """

    def __init__(self, stories: Sequence[Story], form: str, path: str) -> None:
        from bgrpo.tasks.dialogue.embeddings import TextEncoder

        self._stories = stories
        self._encoder = TextEncoder(path)
        self._stories_NE = self._encoder.embed([filled(form, title=each.title, text=each.text) for each in stories])

    def find(self, texts: Sequence[str], count: int) -> list[list[Story]]:
        """See :class:`Retriever`."""
        return [[self._stories[place] for place in best(self._scores(text), count)] for text in texts]

    def _scores(self, text: str) -> np.ndarray:
        return self._stories_NE @ self._encoder.embed([text])[0]


def best(scores_N: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest scores, largest first, of equal ones the earlier."""
    count = min(count, len(scores_N))
    least = np.partition(scores_N, -count)[-count]
    candidates = np.flatnonzero(scores_N >= least)
    return candidates[np.argsort(-scores_N[candidates], kind="stable")][:count]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    found: Any = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return found
