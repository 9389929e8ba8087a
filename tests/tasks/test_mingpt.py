"""Exchange with minGPT, against small independent models of both of its layouts."""

from __future__ import annotations

import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.text import encode_prompt
from bgrpo.tasks.polynomial.mingpt import export_mingpt, extended_vocabulary, import_mingpt, simple_vocabulary
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

BLOCK, WIDTH, HEADS, LAYERS = 16, 24, 3, 2
IDS = torch.randint(0, 31, (3, 11), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Causal attention with separate or joint projections, computed in the open."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        if joint:
            self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("bias", torch.tril(torch.ones(BLOCK, BLOCK))[None, None])
        else:
            self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.proj = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mask", torch.tril(torch.ones(BLOCK, BLOCK))[None, None])
        self.joint = joint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.c_attn(x).chunk(3, -1) if self.joint else (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.mT / math.sqrt(WIDTH // HEADS)
        mask = self.bias if self.joint else self.mask
        scores = scores.masked_fill(mask[:, :, : x.shape[1], : x.shape[1]] == 0, -1e10)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return (self.c_proj if self.joint else self.proj)(y)


class FirstBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention(joint=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class FirstMinGPT(nn.Module):
    """The layout of the original project."""

    def __init__(self, vocabulary: int = 31) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocabulary, WIDTH)
        self.pos_emb = nn.Parameter(torch.zeros(1, BLOCK, WIDTH))
        self.blocks = nn.ModuleList(FirstBlock() for _ in range(LAYERS))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(ids) + self.pos_emb[:, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class SecondBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention(joint=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return x + self.mlp["c_proj"](hidden)


class SecondMinGPT(nn.Module):
    """The layout of later minGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(31, WIDTH),
                "wpe": nn.Embedding(BLOCK, WIDTH),
                "h": nn.ModuleList(SecondBlock() for _ in range(LAYERS)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, 31, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def write(folder: Path, state: Any, **settings: Any) -> tuple[Path, Path]:
    torch.save(state, folder / "model.pt")
    (folder / "model.json").write_text(json.dumps({"n_head": HEADS} | settings))
    return folder / "model.pt", folder / "model.json"


@pytest.mark.parametrize(("make", "prefix"), [(FirstMinGPT, ""), (FirstMinGPT, "module."), (SecondMinGPT, "")])
def test_imported_model_has_the_same_logits(tmp_path: Path, make: type[nn.Module], prefix: str) -> None:
    source = randomise(make())
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    import_mingpt(*write(tmp_path, state, n_layer=LAYERS, n_embd=WIDTH, block_size=BLOCK), tmp_path / "policy")
    policy = load_policy(str(tmp_path / "policy"))
    torch.testing.assert_close(policy.model(IDS).logits, source(IDS), atol=1e-5, rtol=1e-5)
    assert policy.tokenizer.convert_ids_to_tokens(list(range(31))) == simple_vocabulary()
    assert (policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id) == (0, 9)
    assert encode_prompt(policy.tokenizer, "+ P 1 a1 ?")[-1] == 9


def test_activation_of_the_json_wins(tmp_path: Path) -> None:
    source = randomise(SecondMinGPT())
    import_mingpt(*write(tmp_path, source.state_dict(), activation="gelu"), tmp_path / "policy")
    logits = load_policy(str(tmp_path / "policy")).model(IDS).logits
    assert (logits - source(IDS)).abs().max() > 1e-4


def test_export_gives_the_original_state_dict_back(tmp_path: Path) -> None:
    source = randomise(FirstMinGPT())
    import_mingpt(*write(tmp_path, source.state_dict()), tmp_path / "policy")
    export_mingpt(tmp_path / "policy", tmp_path / "out.pt", tmp_path / "out.json")
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert state.keys() == source.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.state_dict().items())
    settings = json.loads((tmp_path / "out.json").read_text())
    assert settings | {"vocabulary": 0, "model_name": 0} == {
        "block_size": BLOCK, "vocab_size": 31, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH,
        "activation": "gelu", "vocabulary": 0, "model_name": 0,
    }  # fmt: skip
    import_mingpt(tmp_path / "out.pt", tmp_path / "out.json", tmp_path / "again")
    assert torch.equal(
        load_policy(str(tmp_path / "again")).model(IDS).logits, load_policy(str(tmp_path / "policy")).model(IDS).logits
    )


def test_a_policy_of_ours_survives_the_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tied embeddings, another vocabulary, tanh GELU (of which the export warns)."""
    tokenizer = build_tokenizer(3, 2)
    model = build_policy(tokenizer, LAYERS, HEADS, WIDTH, BLOCK, seed=0).eval()
    save_policy(model, tokenizer, tmp_path / "policy")
    with caplog.at_level(logging.WARNING):
        export_mingpt(tmp_path / "policy", tmp_path / "out.pt", tmp_path / "out.json")
    assert "exact GELU" in caplog.text
    import_mingpt(tmp_path / "out.pt", tmp_path / "out.json", tmp_path / "again")
    again = load_policy(str(tmp_path / "again"))
    ids = IDS % len(tokenizer)
    torch.testing.assert_close(again.model(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_vocabularies(tmp_path: Path) -> None:
    assert len(extended_vocabulary(101)) == 174
    state = randomise(FirstMinGPT(174)).state_dict()
    import_mingpt(*write(tmp_path, state, MAX_NUMBER_TOKEN=101), tmp_path / "extended")
    tokenizer = load_policy(str(tmp_path / "extended")).tokenizer
    assert encode_prompt(tokenizer, "a18 b0 P 7")[-1] == extended_vocabulary(101).index("7")
    stoi = {token: i for i, token in enumerate(reversed(simple_vocabulary()))}
    state = randomise(FirstMinGPT()).state_dict()
    import_mingpt(*write(tmp_path, state, stoi=stoi), tmp_path / "stoi")
    assert load_policy(str(tmp_path / "stoi")).tokenizer.get_vocab() == stoi
    tokens = ["□", "⁇", *(f"a{i}" for i in range(29))]
    import_mingpt(*write(tmp_path, state), tmp_path / "tokens", tokens)
    assert load_policy(str(tmp_path / "tokens")).tokenizer.convert_ids_to_tokens(2) == "a0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layer": 3}, "n_layer=3, but the weights have 2"),
        ({"n_embd": 32}, "n_embd=32"),
        ({"block_size": 400}, "block_size=400, but the weights have 16"),
        ({"vocab_size": 30}, "vocab_size=30"),
        ({"n_head": 5}, "n_head=5"),
        ({"n_head": None}, "n_head=None"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"vocabulary": ["□", "⁇"]}, "2 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    paths = write(tmp_path, FirstMinGPT().state_dict(), **settings)
    with pytest.raises(UserError, match=message):
        import_mingpt(*paths, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_an_unknown_vocabulary_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="40 tokens"):
        import_mingpt(*write(tmp_path, FirstMinGPT(40).state_dict()), tmp_path / "policy")


@pytest.mark.parametrize("change", ["blocks.1.attn.key.weight", "blocks.0.ln1.bias", "head.weight", "pos_emb"])
def test_a_missing_weight_is_refused(tmp_path: Path, change: str) -> None:
    state = FirstMinGPT().state_dict()
    del state[change]
    with pytest.raises(UserError, match=f"lack.*({change}|embedding)"):
        import_mingpt(*write(tmp_path, state), tmp_path / "policy")


def test_projections_of_different_widths_are_refused(tmp_path: Path) -> None:
    state = FirstMinGPT().state_dict()
    state["blocks.0.attn.key.weight"] = torch.zeros(WIDTH, WIDTH + 1)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.key\.weight has shape \(24, 25\), expected \(24, 24\)"):
        import_mingpt(*write(tmp_path, state), tmp_path / "policy")


@pytest.mark.parametrize("state", [{"weights": torch.ones(2)}, [1, 2], {"tok_emb.weight": 3}])
def test_other_content_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(UserError, match="state dict"):
        import_mingpt(*write(tmp_path, state), tmp_path / "policy")


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, as_zip: bool) -> None:
    weights, config = write(tmp_path, FirstMinGPT().state_dict())
    payload = {"tok_emb.weight": Malicious(tmp_path / "owned")}
    if as_zip:
        torch.save(payload, weights)
    else:
        weights.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(UserError, match="refused"):
        import_mingpt(weights, config, tmp_path / "policy")
    assert not (tmp_path / "owned").exists()
    torch.load(weights, weights_only=False) if as_zip else pickle.loads(weights.read_bytes())  # noqa: S301
    assert (tmp_path / "owned").exists(), "the pickle was harmless: this test proves nothing"


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    weights, config = write(tmp_path, FirstMinGPT().state_dict())
    with pytest.raises(UserError, match="no such file"):
        import_mingpt(tmp_path / "none.pt", config, tmp_path / "policy")
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="refused"):
        import_mingpt(weights, config, tmp_path / "policy")
    for content in ("{", "[1]"):
        config.write_text(content)
        with pytest.raises(UserError, match="JSON"):
            import_mingpt(weights, config, tmp_path / "policy")


def test_what_mingpt_cannot_express_is_not_exported(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(0, 0)
    shape = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    save_policy(LlamaForCausalLM(shape), tokenizer, tmp_path / "llama")
    with pytest.raises(UserError, match="only express gpt2"):
        export_mingpt(tmp_path / "llama", tmp_path / "out.pt", tmp_path / "out.json")
    model = build_policy(tokenizer, 1, 2, 16, 32, seed=0)
    model.config.layer_norm_epsilon = 1e-6
    save_policy(model, tokenizer, tmp_path / "epsilon")
    with pytest.raises(UserError, match="layer_norm_epsilon"):
        export_mingpt(tmp_path / "epsilon", tmp_path / "out.pt", tmp_path / "out.json")
    assert not list(tmp_path.glob("out.*"))
