"""The cluster that ``RAY_ADDRESS`` names: whether it is an address, and whether a head answers, in bounded time."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import AuthenticationError

from bgrpo.cluster.private_ray import log_what_ray_says
from bgrpo.errors import UserError

ANSWER_S = 10.0
_TOKEN_ADVICE = "this cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds it"
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{1,5})", re.ASCII)


def cluster_address() -> str | None:
    """What ``RAY_ADDRESS`` says; None, for a Ray of our own, where it is unset, empty or ``local``.

    Raises:
        UserError: it is no address.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    found = _HOST_AND_PORT.fullmatch(address)
    if address != "auto" and not (found and 0 < int(found[1]) < 65536):
        raise UserError(
            f"RAY_ADDRESS={address!r}: expected HOST:PORT of a Ray head, for example 10.0.0.1:6379, or auto; empty or "
            f"unset for a Ray of the run's own. To send a job to a dashboard, give --submit http://HOST:8265"
        )
    return address


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster at ``address``, which outlives the block.

    Raises:
        UserError: no head of a Ray cluster answers there, or it refuses our token.
    """
    try:
        if address == "auto":  # Ray does so too
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        check_head(canonicalize_bootstrap_address_or_die(address))
        log_what_ray_says()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise UserError(f"RAY_ADDRESS={address}: {_TOKEN_ADVICE}") from error
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last: another version of Ray
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_head(address: str, timeout_s: float = ANSWER_S) -> None:
    """Ask a head whether it is one. Ray itself would wait for minutes, and end the process.

    Args:
        address: ``host:port``.
        timeout_s: longest wait.

    Raises:
        ConnectionError: nothing answers there, or something else than a Ray head.
        AuthenticationError: a head that refuses our token.
    """
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationError(str(error.details())) from error
            if code == grpc.StatusCode.UNIMPLEMENTED:
                raise ConnectionError("what answers there is not the head of a Ray cluster") from error
            raise ConnectionError(f"{code.name.lower().replace('_', ' ')}: {error.details()}") from error
