"""Scores from a reward server elsewhere: JSON over HTTP, whole groups, every wait bounded, no answer trusted."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bgrpo.errors import UserError
from bgrpo.scoring.scored_text import Item, Score, shorten

FIRST_PAUSE_S = 0.5
"""Before the first retry; doubles with each further one."""
_OWN_NAMES = ("prompts", "completions", "groups")


class RewardServer:
    """Asks a server for scores. What goes wrong is a failure of the completions that it concerns, never a score.

    A request is ``POST url`` with ``{"prompts": […], "completions": […], "groups": [0, 0, 1, …], COLUMN: […], …}``. The
    answer is ``{"scores": [number or null, …]}`` with, if the server likes, ``"errors": [text or null, …]``. A null
    without an error says that the reward does not apply.

    Connections that fail, and answers 429 and 5xx, are tried again. Other answers are final, redirects too.

    Args:
        url: http or https, without a user or password.
        batch: most completions in a request; a group is never divided, and a larger one goes alone.
        timeout_s: for each request with all its retries, in seconds.
        retries: most further attempts.
        token_variable: environment variable that holds the bearer token; None: no token is sent.

    Raises:
        UserError: the address or a number is wrong, or the variable is empty.
    """

    def __init__(
        self,
        url: str,
        batch: int = 64,
        timeout_s: float = 60.0,
        retries: int = 3,
        token_variable: str | None = None,
    ) -> None:
        self._place = _place(url)
        if batch < 1 or retries < 0 or not 0 < timeout_s < math.inf:
            raise UserError(f"reward server {self._place}: expected batch >= 1, retries >= 0 and timeout_s > 0")
        token = os.environ.get(token_variable, "") if token_variable else ""
        if token_variable and not token:
            raise UserError(f"reward server {self._place}: the environment variable {token_variable} is not set")
        if not (token.isascii() and token.isprintable()):
            raise UserError(f"reward server {self._place}: {token_variable}: expected printable ASCII")
        self._url, self._batch, self._timeout_s, self._retries, self._token = url, batch, timeout_s, retries, token

    def score(self, items: Sequence[Item]) -> list[Score]:
        """A score for every item, in order. Must not be called where an event loop runs.

        Raises:
            UserError: a column has a name of the protocol's own, or values that JSON does not have.
        """
        return asyncio.run(self._score(items))

    async def _score(self, items: Sequence[Item]) -> list[Score]:
        scores: list[Score] = []
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session:
            for batch in self._batches(items):
                try:
                    async with asyncio.timeout(self._timeout_s):
                        scores += await self._ask(session, batch)
                except TimeoutError:
                    scores += self._failed(batch, f"no answer within {self._timeout_s:g} s")
        return scores

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        for _, members in groupby(items, key=lambda item: item.group):
            group = list(members)
            if batch and len(batch) + len(group) > self._batch:
                yield batch
                batch = []
            batch += group
        if batch:
            yield batch

    async def _ask(self, session: aiohttp.ClientSession, batch: list[Item]) -> list[Score]:
        """Scores of a batch, after retries."""
        try:
            body = json.dumps(_request(batch), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UserError(f"reward server {self._place}: a column cannot be sent as JSON ({error})") from error
        problem = ""
        for attempt in range(self._retries + 1):
            pause_s = FIRST_PAUSE_S * 2**attempt
            try:
                status, headers, answer = await self._post(session, body, _answer_limit(batch))
            except aiohttp.ClientError as error:  # its text may hold the whole address
                problem = f"{type(error).__name__}: {getattr(error, 'message', error)}"
            else:
                if status == 200:
                    return self._read(batch, answer)
                problem = f"status {status}: {_told(answer)}"
                if 300 <= status < 400:
                    problem = f"status {status}: a redirect, which is not followed; give the final address"
                if status != 429 and status < 500:
                    return self._failed(batch, problem)
                pause_s = max(pause_s, _retry_after_s(headers.get("Retry-After", "")))
            if attempt < self._retries:
                await asyncio.sleep(pause_s)
        return self._failed(batch, f"{problem} (after {self._retries + 1} attempts)")

    async def _post(self, session: aiohttp.ClientSession, body: bytes, limit: int) -> tuple[int, Any, bytes]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        async with session.post(
            self._url, data=body, headers=headers, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > limit:
                    response.close()
                    break
            return response.status, response.headers, bytes(answer)

    def _read(self, batch: list[Item], answer: bytes) -> list[Score]:
        """Scores of an answer with status 200."""
        if len(answer) > _answer_limit(batch):
            return self._failed(batch, f"the answer has more than {_answer_limit(batch):,} bytes")
        try:
            read = json.loads(answer)
        except (ValueError, RecursionError) as error:
            return self._failed(batch, f"the answer is not JSON ({error})")
        scores = read.get("scores") if isinstance(read, dict) else None
        if not isinstance(scores, list):
            return self._failed(batch, f'expected {{"scores": [...]}}, found {answer[:80]!r}')
        if len(scores) != len(batch):
            return self._failed(batch, f"{len(scores)} scores for {len(batch)} completions")
        errors = read.get("errors") or [None] * len(batch)
        if not isinstance(errors, list) or len(errors) != len(batch):
            return self._failed(batch, f"errors: expected a list of {len(batch)}")
        return [self._one(value, error) for value, error in zip(scores, errors, strict=True)]

    def _one(self, value: Any, error: Any) -> Score:
        if error:
            return self._failure(str(error))
        if value is None:
            return Score()
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._failure(f"the score is {str(value)[:80]!r}, not a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return Score(number) if math.isfinite(number) else self._failure(f"the score is {number}, not a finite number")

    def _failed(self, batch: list[Item], problem: str) -> list[Score]:
        return [self._failure(problem)] * len(batch)

    def _failure(self, problem: str) -> Score:
        known = problem.replace(self._token, "[token]") if self._token else problem
        return Score(failure=f"reward server {self._place}: {shorten(known)}")


def _request(batch: list[Item]) -> dict[str, list[Any]]:
    """The body of a request.

    Raises:
        UserError: a column has a name of the protocol's own.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(item.group for item in batch))}
    body: dict[str, list[Any]] = {
        "prompts": [item.prompt for item in batch],
        "completions": [item.completion for item in batch],
        "groups": [numbers[item.group] for item in batch],
    }
    for name in dict.fromkeys(name for item in batch for name in item.columns):
        if name in _OWN_NAMES:
            raise UserError(f"column {name!r}: a reward server gets {', '.join(_OWN_NAMES)} already; rename the column")
        body[name] = [item.columns.get(name) for item in batch]
    return body


def _answer_limit(batch: list[Item]) -> int:
    """Most bytes of an answer that are read."""
    return 64 * 1024 + 4096 * len(batch)


def _place(url: str) -> str:
    """Scheme, host and port of an address: what may stand in a message.

    Raises:
        UserError: it is no address of a server.
    """
    expected = "reward server: expected http://HOST:PORT/PATH or https://…, without user and password"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError(expected) from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise UserError(expected)
    return f"{parts.scheme}://{shorten(host, 80)}" + (f":{port}" if port else "")


def _told(answer: bytes) -> str:
    """What an answer with another status says about itself."""
    text = answer[:2000].decode("utf-8", "replace")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return text or "no text"
    return str(read["error"]) if isinstance(read, dict) and "error" in read else text


def _retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header; a date, or anything else, counts as 0."""
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0.0
