"""A policy in this process: a model of transformers, its tokenizer, and exact beam search and sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bgrpo.errors import UserError, representation
from bgrpo.groups import Group, Search, fused, passages_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bgrpo.decoding.allowed import Allowed
    from bgrpo.policies.io import LoadedPolicy

AllowedLike: TypeAlias = "Sequence[str] | Callable[[list[int], list[int]], Iterable[int]]"
"""Texts; or a function from the token ids of a prompt and of its completion so far to those that may follow."""

Prompt: TypeAlias = "str | Sequence[int] | Sequence[Mapping[str, str]] | Sequence[str]"
"""Text; token ids; a chat: messages ``{"role": …, "content": …}``; or the passages that an encoder reads apart, as a
list of texts inside the list of prompts."""

PolicyLike: TypeAlias = "str | PathLike[str] | Policy | LoadedPolicy | tuple[PreTrainedModel, PreTrainedTokenizerBase]"
"""``"shipped"``, a folder or a model id of the Hub; what :func:`load_policy` gave; a model with its tokenizer."""

MAX_NEW_TOKENS = 64
AT_ONCE = 64  # prompts
LARGEST_SEED = 2**32 - 1


class Policy:
    """A policy that is loaded.

    Args:
        loaded: the policy.
        max_new_tokens: longest completion, unless a call asks for another.
    """

    def __init__(self, loaded: LoadedPolicy, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.loaded = loaded
        self.max_new_tokens = max_new_tokens

    def __repr__(self) -> str:
        return f"Policy({self.path!r}, {type(self.model).__name__}, {self.model.num_parameters():,} parameters)"

    @property
    def model(self) -> PreTrainedModel:
        """The model, in fp32 and evaluation mode. Whatever transformers does with models can be done with it."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.loaded.tokenizer

    @property
    def path(self) -> str:
        """Where it came from."""
        return self.loaded.path

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        stop: str | Sequence[str] = (),
        min_new_tokens: int = 0,
        banned_tokens: Sequence[int | str] = (),
    ) -> list[str]:
        """One completion of each prompt, as text without the end token or stop text.

        Args:
            prompts: one or several, as of :meth:`decode`.
            max_new_tokens: longest completion, end token included.
            temperature: of sampling; 0 takes the likeliest token each time.
            seed: of the samples.
            top_p: as of :func:`bgrpo.decode`, like all that follow.
            top_k: see there.
            min_p: see there.
            stop: see there.
            min_new_tokens: see there.
            banned_tokens: see there.

        Raises:
            UserError: see :meth:`decode`.
        """
        how: dict[str, Any] = {"search": "sample", "temperature": temperature} if temperature else {"search": "beam"}
        how |= {"top_p": top_p, "top_k": top_k, "min_p": min_p, "stop": stop}
        how |= {"min_new_tokens": min_new_tokens, "banned_tokens": banned_tokens}
        groups = self.decode(prompts, group_size=1, max_new_tokens=max_new_tokens, seed=seed, **how)
        return [group.completions[0].text for group in groups]

    def decode(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        search: Search = "beam",
        group_size: int = 10,
        max_new_tokens: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        stop: str | Sequence[str] = (),
        min_new_tokens: int = 0,
        banned_tokens: Sequence[int | str] = (),
        allowed: AllowedLike | None = None,
        beam_groups: int = 0,
        diversity: float = 0.5,
    ) -> list[Group]:
        """A group of completions for each prompt, see :func:`bgrpo.decode`.

        Raises:
            UserError: a prompt is empty, too long, of another kind, or holds tokens that the policy does not know; or
                an argument is out of range.
        """
        from bgrpo.decoding import DecodeEngine, DecodeSettings
        from bgrpo.policies.text import end_tokens, single_tokens
        from bgrpo.scoring.readable_groups import decode_readable
        from bgrpo.seeds import rollout_seed

        longest = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        settings = DecodeSettings(
            mode=search,
            group_size=whole("group_size", group_size, 1),
            max_new_tokens=whole("max_new_tokens", longest, 1),
            eos_token_id=end_tokens(self.tokenizer),
            pad_token_id=_pad_token(self.tokenizer),
            temperature=_number("temperature", temperature),
            top_k=whole("top_k", top_k, 0),
            top_p=_number("top_p", top_p),
            min_p=_number("min_p", min_p),
            stop=(stop,) if isinstance(stop, str) else tuple(_listed("stop", stop, (str,))),
            min_new_tokens=whole("min_new_tokens", min_new_tokens, 0),
            banned_tokens=single_tokens(
                self.tokenizer, _listed("banned_tokens", banned_tokens, (int, str)), "banned_tokens"
            ),
            allowed=self._allowed(allowed),
            beam_groups=whole("beam_groups", beam_groups, 0),
            diversity=_number("diversity", diversity),
        )
        settings.check_vocabulary(len(self.tokenizer))
        whole("seed", seed, 0, LARGEST_SEED)
        encoded = _encode(self.loaded, _several(prompts), settings.max_new_tokens)
        engine, groups = DecodeEngine(self.model), list[Group]()
        for start in range(0, len(encoded), AT_ONCE):
            part = encoded[start : start + AT_ONCE]
            seeds = [rollout_seed(seed, 0, start + position) for position in range(len(part))]
            groups += decode_readable(engine, self.tokenizer, part, settings, seeds)
        return groups

    def _allowed(self, allowed: AllowedLike | None) -> Allowed | None:
        from bgrpo.decoding.allowed import AllowedByFunction
        from bgrpo.scoring.allowed_texts import allowed_of_texts

        if allowed is None:
            return None
        if callable(allowed):
            return AllowedByFunction(allowed, len(self.tokenizer))
        texts = _listed("allowed", allowed, (str,))
        return allowed_of_texts(self.tokenizer, texts, [f"allowed[{i}]" for i in range(len(texts))], "allowed")

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it so that :func:`load_policy` and ``from_pretrained`` of transformers read it.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        from bgrpo.policies.io import save_policy

        save_policy(self.model, self.tokenizer, Path(folder))


def load_policy(policy: PolicyLike) -> Policy:
    """A policy in this process.

    Args:
        policy: ``"shipped"``, a folder in Hugging Face format, a model id of the Hugging Face Hub; or a model of
            transformers with its tokenizer, which are copied, and stay as they are.

    Raises:
        UserError: there is no such policy, or it cannot be decoded exactly; what was wrong, in one line.
    """
    from bgrpo.policies.io import LoadedPolicy, save_policy
    from bgrpo.runs.preparation import check_policy

    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, LoadedPolicy):
        return Policy(policy)
    if isinstance(policy, str | PathLike):
        return Policy(check_policy(fspath(policy)))
    model, tokenizer = _pair(policy)
    with tempfile.TemporaryDirectory(prefix="bgrpo-policy-") as folder:
        path = Path(folder) / "policy"
        try:
            save_policy(model, tokenizer, path)
            found = check_policy(str(path))
        except UserError as error:
            raise UserError(f"policy: {str(error).replace(f'policy {path}: ', '')}") from error
    return Policy(LoadedPolicy(found.model, found.tokenizer, type(model).__name__))


def whole(name: str, value: Any, least: int, most: int = 10**6) -> int:
    """A whole number within bounds.

    Raises:
        UserError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name}={representation(value)}: expected a whole number from {least} to {most:,}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={representation(value)}: expected a number")
    return float(value)


def _listed(name: str, values: Any, kinds: tuple[type, ...]) -> list[Any]:
    fits = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not fits or any(isinstance(value, bool) or not isinstance(value, kinds) for value in values):
        named = "token ids and texts" if int in kinds else "texts"
        raise UserError(f"{name}={representation(values)}: expected a list of {named}")
    return list(values)


def _pair(policy: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(policy, tuple | list) and len(policy) == 2:
        model, tokenizer = policy
        if isinstance(model, PreTrainedModel) and isinstance(tokenizer, PreTrainedTokenizerBase):
            return model, tokenizer
    kind = type(policy).__name__
    if isinstance(policy, tuple | list):
        kind += f" of {', '.join(type(part).__name__ for part in policy[:5])}"
    raise UserError(
        f"policy: is a {kind}: expected 'shipped', a folder, a model id of the Hugging Face Hub, what "
        f"bgrpo.load_policy gave, or a model of transformers with its tokenizer, (model, tokenizer)"
    )


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.pad_token_id
    if not isinstance(token, int):
        raise UserError("policy: its tokenizer has no pad token: set tokenizer.pad_token")
    return token


def _several(prompts: Any) -> list[Any]:
    """A list of prompts, also of one alone."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise UserError(f"prompts: are a {type(prompts).__name__}: expected a list of texts, chats or token ids")
    if not prompts:
        raise UserError("prompts: are empty: expected at least one")
    return [prompts] if isinstance(prompts[0], Mapping) or _is_token(prompts[0]) else list(prompts)


def _encode(policy: LoadedPolicy, prompts: list[Any], max_new_tokens: int) -> list[list[int]]:
    """Token ids of each prompt, whatever its form."""
    from bgrpo.policies.text import UnreadableText, encode_chats, encode_texts, has_encoder

    texts: dict[int, str] = {}
    chats: dict[int, list[dict[str, str]]] = {}
    found: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            texts[place] = prompt
        elif isinstance(prompt, Sequence) and prompt and all(isinstance(each, Mapping) for each in prompt):
            chats[place] = [_message(place, each) for each in prompt]
        elif isinstance(prompt, Sequence) and prompt and all(map(_is_token, prompt)):
            found[place] = list(prompt)
        elif isinstance(prompt, Sequence) and prompt and all(isinstance(each, str) for each in prompt):
            if not has_encoder(policy.tokenizer):
                raise UserError(f"prompts[{place}]: is a list of passages, but the policy has no encoder")
            try:
                found[place] = fused(encode_texts(policy.tokenizer, list(prompt)))
            except UnreadableText as error:
                raise UserError(f"prompts[{place}][{error.index}]: {error}") from error
        else:
            raise UserError(
                f"prompts[{place}]: is {representation(prompt)}: expected text, token ids, a chat of "
                "{'role': …, 'content': …}, or passages"
            )
    places = list(texts)
    try:
        found |= zip(texts, encode_texts(policy.tokenizer, list(texts.values())), strict=True)
        places = list(chats)
        found |= zip(chats, encode_chats(policy.tokenizer, list(chats.values())), strict=True)
    except UnreadableText as error:
        raise UserError(f"prompts[{places[error.index]}]: {error}") from error
    encoded = [found[place] for place in range(len(prompts))]
    _check(policy, encoded, max_new_tokens)
    return encoded


def _check(policy: LoadedPolicy, encoded: list[list[int]], max_new_tokens: int) -> None:
    from bgrpo.decoding.support import context_of, room_for_prompt

    vocabulary, context = policy.model.config.vocab_size, context_of(policy.model.config)
    room, encoder = room_for_prompt(policy.model.config, max_new_tokens), policy.model.config.is_encoder_decoder
    parts = ((place, part) for place, ids in enumerate(encoded) for part in (passages_of(ids) if encoder else [ids]))
    for place, ids in parts:
        if not ids:
            raise UserError(f"prompts[{place}]: has an empty passage")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            wrong = next(token for token in ids if not 0 <= token < vocabulary)
            raise UserError(f"prompts[{place}]: has token {wrong}: the policy's vocabulary is 0 to {vocabulary - 1}")
        if room is not None and len(ids) > room:
            total = len(ids) + max_new_tokens
            raise UserError(
                f"prompts[{place}]: has {len(ids)} tokens + max_new_tokens={max_new_tokens} = {total}, but the "
                f"policy's context is {context}: shorten it, or take fewer new tokens"
            )


def _message(place: int, message: Mapping[Any, Any]) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        shown = representation(dict(message))
        raise UserError(f"prompts[{place}]: message {shown}: expected {{'role': text, 'content': text}}")
    return {"role": role, "content": content}


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
