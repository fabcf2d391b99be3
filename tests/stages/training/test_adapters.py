"""Adapters: what trains, what a checkpoint holds, and the ordinary model that comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from stages.artifacts import ModelArtifact
from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.adapters.adapter_options import Adapter
from stages.training.adapters.adapters import Update, adapted_layers, adapter_names, add_adapter, merged_weights

IDS = torch.arange(3, 15)[None]
SMALL = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
ROPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def _models():
    rope = SMALL | ROPE | {"num_key_value_heads": 2}
    return {
        "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**rope, tie_word_embeddings=True)),
        "llama-untied": lambda: LlamaForCausalLM(LlamaConfig(**rope, tie_word_embeddings=False)),
        "gemma": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**rope, head_dim=8)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=4)),
    }


def _model(kind: str):
    torch.manual_seed(3)
    return _models()[kind]().eval()


@torch.no_grad()
def _train_a_little(model) -> None:
    """Move every trainable parameter, as some steps of training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", _models())
def test_the_merged_model_computes_what_the_adapted_one_does(kind, method):
    plain, adapted = _model(kind), _model(kind)
    add_adapter(adapted, Adapter(method=method, rank=3), seed=1)
    torch.testing.assert_close(adapted(IDS).logits, plain(IDS).logits)
    _train_a_little(adapted)
    merged = merged_weights(adapted, adapted.state_dict())
    names = plain.state_dict().keys()
    assert merged.keys() == names
    changed = {name for name in names if not torch.equal(merged[name], plain.state_dict()[name])}
    assert {name.removesuffix(".weight") for name in changed} >= adapted_layers(adapted).keys()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(IDS).logits, adapted(IDS).logits, atol=1e-5, rtol=1e-5)


def test_an_update_by_hand():
    # W + 2 B A = [[3, 4], [0, 1]]; rows of lengths 5 and 1 become rows of lengths 10 and 3.
    weight = torch.tensor([[1.0, 4.0], [0.0, 1.0]])
    update = {"down": torch.tensor([[1.0, 0.0]]), "up": torch.tensor([[1.0], [0.0]]), "scale": 2.0}
    assert Update(**update).merged(weight).tolist() == [[3, 4], [0, 1]]
    dora = Update(**update, lengths=torch.tensor([10.0, 3.0]))
    assert dora.merged(weight).tolist() == [[6, 8], [0, 3]]


def test_merging_rounds_once_and_last():
    # In bf16 the sum of 64 updates of a sixteenth of the weight's last digit would round each of them away.
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    small = torch.full((1, 64), 2.0**-12, dtype=torch.bfloat16)
    merged = Update(torch.ones(64, 1, dtype=torch.bfloat16), small, 1.0).merged(weight)
    assert merged.dtype == torch.bfloat16
    assert float(merged) == 1 + 64 * 2.0**-12


def test_the_adapter_is_a_function_of_the_seed():
    models = [_model("llama-tied") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(seed)  # what was drawn before makes no difference
        add_adapter(model, Adapter(), seed)
    one, same, other = (
        torch.cat([model.state_dict()[name].flatten() for name in sorted(adapter_names(model))]) for model in models
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("embeddings", ["train", "freeze"])
@pytest.mark.parametrize("kind", _models())
def test_what_trains(kind, embeddings):
    model = _model(kind)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    add_adapter(model, Adapter(embeddings=embeddings), seed=1)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    vocabulary = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for name, parameter in model.named_parameters():
        expected = name in adapter_names(model) or (id(parameter) in vocabulary and embeddings == "train")
        assert parameter.requires_grad == expected, name


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (None, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (("q_proj", "mlp.up_proj"), {"q_proj", "up_proj"}),
    ],
)
def test_targets_are_ends_of_names(targets, adapted):
    model = _model("llama-untied")
    add_adapter(model, Adapter(targets=targets), seed=1)
    assert {name.rpartition(".")[2] for name in adapted_layers(model)} == adapted
    assert len(adapted_layers(model)) == 2 * len(adapted)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_prj", r"no linear layer 'q_prj' \(did you mean 'q_proj'\?\); it has down_proj, gate_proj, k_proj"),
        ("proj", "no linear layer 'proj'"),
        ("lm_head", "Embeddings and the output head take no adapter: they train whole"),
        ("embed_tokens", "Embeddings and the output head take no adapter"),
    ],
)
def test_a_target_that_is_no_linear_layer_is_refused(target, message):
    with pytest.raises(StageError, match=message):
        add_adapter(_model("llama-untied"), Adapter(targets=(target,)), seed=1)


SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
] * 3
ALM = {"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    with (documents / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(SENTENCES):
            file.write(json.dumps({"id": f"d/{number}", "domain": "d", "weight": 1.0, "text": text}) + "\n")
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": documents,
    }


class _StopAfter:
    """Asks the stage to stop once it was polled ``polls`` times."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _distill(world, root: Path, *, context=None, **options) -> dict[str, torch.Tensor]:
    options = {
        "losses": [ALM, "cross_entropy"], "steps": 4, "batch_windows": 4, "window_tokens": 48, "log_every": 1,
        "learning_rate": 3e-3, "dtype": "fp32", "adapter": {"rank": 4}, "data_workers": 0,
    } | options  # fmt: skip
    work, out = root / "work", root / "out"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    inputs = {name: {name: path} for name, path in world.items()}
    ctx = StageContext(config=DistillConfig(**options), inputs=inputs, work=work, out=out, **(context or {}))
    Distill().run(ctx)
    ModelArtifact.verify(out)
    return load_file(out / "model.safetensors")


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_training_publishes_an_ordinary_model(world, tmp_path, method):
    trained = _distill(world, tmp_path, adapter={"method": method, "rank": 4}, steps=12)
    before = load_file(world["student"] / "model.safetensors")
    assert trained.keys() == before.keys()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    moved = {name for name in before if not torch.equal(before[name], trained[name])}
    # The norms have no adapter and stay; the tied embedding trains whole.
    assert moved == {name for name in before if "norm" not in name}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    curve = _curve(tmp_path, "loss")
    assert curve[-1] < curve[0]


def test_frozen_embeddings_stay_and_an_update_has_at_most_its_rank(world, tmp_path):
    trained = _distill(world, tmp_path, adapter={"rank": 2, "embeddings": "freeze"})
    before = load_file(world["student"] / "model.safetensors")
    assert torch.equal(trained["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    name = "model.layers.1.mlp.up_proj.weight"
    singular = torch.linalg.svdvals((trained[name] - before[name]).double())
    assert singular[1] > 1e-5
    assert singular[2] < 1e-6


def test_a_checkpoint_leaves_the_frozen_weights_out(world, tmp_path):
    _distill(world, tmp_path, adapter={"rank": 2, "embeddings": "freeze"})
    model = AutoModelForCausalLM.from_pretrained(world["student"])
    add_adapter(model, Adapter(rank=2, embeddings="freeze"), seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    newest = max((tmp_path / "work" / "ckpt").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    size = sum(path.stat().st_size for path in newest.rglob("*.safetensors"))
    # Weights and two moments in float32; names and shapes take the rest.
    assert 12 * trained <= size < 12 * trained + 30_000


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_interrupted_run_with_dropout_ends_bitwise_like_an_uninterrupted_one(world, tmp_path, dtype):
    options = {"adapter": {"rank": 4, "dropout": 0.3}, "dtype": dtype}
    expected = _distill(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path / "resumed", context={"should_stop": _StopAfter(2)}, **options)
    resumed = _distill(world, tmp_path / "resumed", **options)
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_dropout_takes_place(world, tmp_path):
    curves = []
    for dropout in (0.5, 0.0):
        _distill(world, tmp_path / str(dropout), steps=2, adapter={"rank": 4, "dropout": dropout})
        curves.append(_curve(tmp_path / str(dropout), "loss"))
    # B is zero in the first step, so what A is given makes no difference yet.
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] != curves[1][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": {"rank": 0}}, "greater than or equal to 1"),
        ({"adapter": {"alpha": 0}}, "greater than 0"),
        ({"adapter": {"dropout": 1}}, "less than 1"),
        ({"adapter": {"targets": []}}, "at least 1 item"),
        ({"adapter": {"methd": "lora"}}, "Extra inputs are not permitted"),
        ({"adapter": {}, "trainable": "embeddings"}, "adapter trains layers that trainable: embeddings freezes"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(losses=["cross_entropy"], steps=1, **options)
