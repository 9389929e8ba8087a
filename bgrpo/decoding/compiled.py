"""The compiled attention kernel: built on first use for the processor at hand, checked, and optional.

The library is kept in the user's cache folder under a name that holds the source, the compiler's flags and the
processor's instruction set, so that a home directory shared by different machines never gives one the other's code.
Where there is no C++ compiler, or the result fails its check, the same attention runs in PyTorch, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bgrpo.decoding.attention_rules import AttentionRules, band, masked_attention
from bgrpo.files import atomic_path

SOURCE = Path(__file__).parent / "kernels" / "tree_attention.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
LANES = 16
"""Floats of one vector in the kernel; head widths are padded to a multiple."""
TILE = 64
"""Prompt places whose keys lie together; prompts are padded to a multiple."""

_BUILD_LIMIT_S = 300.0  # 4 to 10 s of processor time; a busy machine has a small part of one to give
_POINTERS = (
    *("prompt_keys", "prompt_values", "node_keys", "node_values", "prompt_lengths", "first_rows", "paths"),
    "bias",
)
_SIZES = (
    *("prompts", "heads", "key_heads", "head_width", "width", "places", "chunks", "chunk", "path_stride"),
    *("depth", "window"),
)
logger = logging.getLogger(__name__)


class TreeAttentionArguments(ctypes.Structure):
    """``struct TreeAttention`` of the source, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("query", "key", "value") for axis in ("row", "head")),
        ("output", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("cap", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("halves", ctypes.c_int32),
    )


class KernelUnavailable(Exception):
    """Why the compiled kernel cannot be used here."""


class TreeAttentionKernel:
    """The loaded library.

    Args:
        path: of the shared library.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._function = ctypes.CDLL(str(path)).bgrpo_tree_attention
        except (OSError, AttributeError) as error:
            raise KernelUnavailable(f"{path} cannot be loaded: {error}") from error
        self._function.argtypes = [ctypes.POINTER(TreeAttentionArguments)]
        self._function.restype = None

    def layer(self, prompt_keys_GHTDP: Tensor, prompt_values_GHPD: Tensor) -> KernelLayer:
        """See :class:`KernelLayer`."""
        return KernelLayer(self._function, prompt_keys_GHTDP, prompt_values_GHPD)


class KernelLayer:
    """Keys and values of one layer, as the kernel reads them; nodes in chunks, so that none is moved for more room.

    On the CPU; floats are fp32, integers int32. Keys and values of prompts and nodes may all be bf16 instead: the rows'
    own are then rounded too. What stays from step to step is handed over once: for a small policy that takes as long
    as the attention.

    Attributes:
        prompt_keys: tiles of :data:`TILE` places, transposed; head width padded to whole :data:`LANES`.
        prompt_values: padded likewise.
        nodes: chunks so far.

    Args:
        function: of the library.
        prompt_keys_GHTDP: see above.
        prompt_values_GHPD: likewise.
    """

    def __init__(self, function: Callable[..., None], prompt_keys_GHTDP: Tensor, prompt_values_GHPD: Tensor) -> None:
        self.prompt_keys = prompt_keys_GHTDP
        self.prompt_values = prompt_values_GHPD
        self.nodes: list[tuple[Tensor, Tensor]] = []
        self._function = function
        self._chunks: tuple[Any, ...] = ()
        self._arguments = TreeAttentionArguments(
            prompt_keys=prompt_keys_GHTDP.data_ptr(),
            prompt_values=prompt_values_GHPD.data_ptr(),
            prompts=prompt_values_GHPD.shape[0],
            places=prompt_values_GHPD.shape[2],
            width=prompt_values_GHPD.shape[3],
            halves=prompt_keys_GHTDP.dtype == torch.bfloat16,
        )
        self._reference = ctypes.byref(self._arguments)

    def add_nodes(self, keys_GHND: Tensor, values_GHND: Tensor) -> None:
        """Room for further nodes, head width padded as the prompts'; changed in place. All chunks are equally large."""
        self.nodes.append((keys_GHND, values_GHND))
        self._chunks = tuple(
            (ctypes.c_void_p * len(self.nodes))(*(chunk.data_ptr() for chunk in chunks))
            for chunks in zip(*self.nodes, strict=True)
        )
        arguments = self._arguments
        arguments.node_keys, arguments.node_values = map(ctypes.addressof, self._chunks)
        arguments.chunks, arguments.chunk = len(self.nodes), keys_GHND.shape[2]

    def attend(
        self,
        query_HRD: Tensor,
        key_HRD: Tensor,
        value_HRD: Tensor,
        prompt_lengths_G: Tensor,
        first_rows_G: Tensor,
        paths_RT: Tensor,
        depth: int,
        rules: AttentionRules,
        bias_HT: Tensor | None = None,
    ) -> Tensor:
        """Store the rows' keys and values in their nodes, and attend.

        Args:
            query_HRD: of the rows; further rows beyond those of ``first_rows_G`` are fillers.
            key_HRD: likewise, for the key-value heads.
            value_HRD: likewise.
            prompt_lengths_G: places in use.
            first_rows_G: [prompts + 1], where each prompt's rows begin and the last one's end.
            paths_RT: nodes of each row from the root on, its own at ``depth - 1``.
            depth: nodes on each path; 0: rows attend to prompts alone, and keys and values are not read.
            rules: of the layer.
            bias_HT: added to the scores of the nodes of each path, from the root on.

        Returns:
            [R, query heads, head width]; zero for fillers.
        """
        query, key, value = (
            tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query_HRD, key_HRD, value_HRD)
        )
        heads, rows, head_width = query.shape
        output_RHD = query.new_empty(rows, heads, head_width)
        if rows > paths_RT.shape[0]:
            output_RHD[paths_RT.shape[0] :] = 0
        arguments = self._arguments
        arguments.query, arguments.key, arguments.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        arguments.query_head, arguments.query_row, _ = query.stride()
        arguments.key_head, arguments.key_row, _ = key.stride()
        arguments.value_head, arguments.value_row, _ = value.stride()
        arguments.output = output_RHD.data_ptr()
        arguments.prompt_lengths = prompt_lengths_G.data_ptr()
        arguments.first_rows = first_rows_G.data_ptr()
        arguments.paths, arguments.path_stride = paths_RT.data_ptr(), paths_RT.stride(0)
        arguments.bias = None if bias_HT is None else bias_HT.data_ptr()
        arguments.heads, arguments.key_heads, arguments.head_width = heads, key.shape[0], head_width
        arguments.depth, arguments.window = depth, rules.window or 0
        arguments.scale, arguments.cap = rules.scale, rules.cap or 0.0
        arguments.threads = torch.get_num_threads()
        self._function(self._reference)
        return output_RHD


def tiles_of(keys_PD: Tensor, tiles: int) -> Tensor:
    """Keys [..., P, D] as the kernel reads them: [..., tiles, D, TILE], zero beyond P."""
    padded_PD = functional.pad(keys_PD, (0, 0, 0, tiles * TILE - keys_PD.shape[-2]))
    return padded_PD.unflatten(-2, (tiles, TILE)).transpose(-1, -2)


@functools.cache
def compiled_kernel() -> TreeAttentionKernel | None:
    """The kernel, built if need be; None where it is not available, which is logged once with the reason."""
    try:
        return load_kernel()
    except KernelUnavailable as error:
        logger.warning("decoding uses PyTorch's attention, which is slower: %s", error)
        return None


def load_kernel() -> TreeAttentionKernel:
    """Build the kernel unless that was done before, load it, and check it.

    Raises:
        KernelUnavailable: no compiler, a failed build, or wrong results.
    """
    path = _cache_folder() / f"tree_attention-{_identity()}.so"
    if not path.is_file():
        _build(path)
    kernel = TreeAttentionKernel(path)
    _check(kernel)
    return kernel


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "bgrpo" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        raise KernelUnavailable(f"there is no cache folder that can be written: {error}") from error
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise KernelUnavailable(f"{folder} can be written by other users: code is not loaded from there")
    return folder


def _identity() -> str:
    parts = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), _instruction_set().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _instruction_set() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    wanted = ("flags", "features", "model name", "cpu part")
    found = {line.partition(":")[0].strip().lower(): line.partition(":")[2] for line in lines if ":" in line}
    return platform.machine() + "".join(found.get(name, "") for name in wanted)


def _build(path: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise KernelUnavailable("there is no C++ compiler (c++, g++ or clang++)")
    with atomic_path(path) as target:  # also for processes side by side
        try:
            subprocess.run(
                [compiler, *FLAGS, "-o", str(target), str(SOURCE)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_BUILD_LIMIT_S,
            )
        except subprocess.CalledProcessError as error:
            raise KernelUnavailable(f"{compiler} failed: {error.stderr.strip()[-400:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(f"{compiler} failed: {error}") from error


def _check(kernel: TreeAttentionKernel) -> None:
    for kept in (torch.float32, torch.bfloat16):
        _check_with(kernel, kept, AttentionRules(0.3), biased=True)
        _check_with(kernel, kept, AttentionRules(0.3, window=20, cap=0.7), biased=False)


def _check_with(kernel: TreeAttentionKernel, kept: torch.dtype, rules: AttentionRules, biased: bool) -> None:
    """A small attention with grouped heads, ragged prompts, chunks and fillers, against the plain formula in fp64."""
    heads, key_heads, head_width, lengths, rows, depth = 4, 2, 8, [0, 3, TILE + 21], [2, 1, 19], 2
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(count, sum(rows) + 1, head_width, generator=draw) for count in (heads, key_heads, key_heads)
    )
    kept_key, kept_value = key.to(kept), value.to(kept)
    bias_HT = torch.randn(heads, depth, generator=draw) if biased else None
    prompt_keys = torch.zeros(3, key_heads, 2, LANES, TILE, dtype=kept)
    prompt_values = torch.zeros(3, key_heads, 2 * TILE, LANES, dtype=kept)
    layer = kernel.layer(prompt_keys, prompt_values)
    for _ in range(0, 1 + max(rows), 7):
        layer.add_nodes(*torch.zeros(2, 3, key_heads, 7, LANES, dtype=kept))
    for nodes in layer.nodes[0]:
        nodes[:, :, 0, :head_width] = torch.randn(3, key_heads, head_width, generator=draw)
    node_keys, node_values = layer.nodes[0]
    paths, first, expected = [], [0], []
    for g, (length, count) in enumerate(zip(lengths, rows, strict=True)):
        keys_of_prompt = torch.randn(key_heads, length, head_width, generator=draw).to(kept)
        prompt_keys[g, :, :, :head_width] = tiles_of(keys_of_prompt, prompt_keys.shape[2])
        prompt_values[g, :, :length, :head_width] = torch.randn(key_heads, length, head_width, generator=draw)
        for row in range(first[-1], first[-1] + count):
            own = [node_keys[g, :, :1, :head_width], kept_key[:, row : row + 1]]
            keys = torch.cat([keys_of_prompt, *own], 1).double()
            own = [node_values[g, :, :1, :head_width], kept_value[:, row : row + 1]]
            values = torch.cat([prompt_values[g, :, :length, :head_width], *own], 1).double()
            queries = query[:, row].double().view(key_heads, -1, head_width)
            places = length + depth
            mask = band(range(places - 1, places), range(places), rules.window, queries)
            if bias_HT is not None:
                mask = mask + functional.pad(bias_HT.double(), (length, 0)).view(key_heads, -1, places)
            expected.append(
                masked_attention(queries[None], keys[None], values[None], mask, rules).view(heads, head_width)
            )
            paths.append([0, 1 + row - first[-1]])
        first.append(first[-1] + count)
    known_G, first_G, paths_RT = (torch.tensor(numbers, dtype=torch.int32) for numbers in (lengths, first, paths))
    found = layer.attend(query, key, value, known_G, first_G, paths_RT, depth, rules, bias_HT)
    error = float((found[:-1] - torch.stack(expected)).abs().max())
    if not error < 1e-5 or found[-1].abs().max() > 0:
        raise KernelUnavailable(f"the compiled kernel's check failed: its result is off by {error:.2g}")
