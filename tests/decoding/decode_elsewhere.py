"""Decodes in bf16 in a process of its own, whose environment may hide what the processor has: prints JSON."""

from __future__ import annotations

import json
import sys

import torch
from decoding.tiny_models import tiny_model

from bgrpo.cli.doctor import check_precisions
from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.onednn import onednn_multiplies

if __name__ == "__main__":
    kind, prompt, *counts = json.loads(sys.argv[1])
    width, steps, eos = counts
    engine = DecodeEngine(tiny_model(kind, vocabulary=9, seed=7), precision="bf16")
    group = engine.decode([prompt], DecodeSettings("beam", width, steps, eos_token_id=eos, pad_token_id=0))[0]
    print(
        json.dumps(
            {
                "multiplies": {name: onednn_multiplies(getattr(torch, name)) for name in ("float32", "bfloat16")},
                "doctor": check_precisions().detail,
                "scores": [[completion.tokens, completion.logprob] for completion in group.completions],
            }
        )
    )
