"""The memory plan against real tensors, a backward pass's saved tensors, and the figures of the ZeRO paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.objectives import LossEntry
from stages.stage import StageContext
from stages.training.adapters.trained import choose_trained
from stages.training.backends.backend import PlainBackend
from stages.training.backends.zero import Zero
from stages.training.config import TrainingConfig
from stages.training.memory.memory_facts import KeptBytes, ModelMemory, cache_memory, student_memory, teacher_memory
from stages.training.memory.memory_plan import Layout, Reading, Rollouts, plan_memory
from stages.training.memory.memory_report import layout_of, report_memory
from stages.training.memory.memory_table import GIB, Line, MemoryPlan
from stages.training.models import DTYPES, Reads, ScoringModel, load_model
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.teachers.teaching import Teaching

CPU = torch.device("cpu")
ROWS, TOKENS = 2, 24
SMALL = {
    "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": 70, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama-untied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "gemma": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8)),
    "qwen": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, attn_pdrop=0.0)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)),
}
WAYS = {
    "everything": {},
    "embeddings": {"trainable": "embeddings"},
    "lora": {"adapter": {"rank": 4, "dropout": 0.1}},
    "dora, frozen embeddings": {"adapter": {"method": "dora", "rank": 4, "embeddings": "freeze"}},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    found = {}
    for name, make in MODELS.items():
        found[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(found[name])
    return found


def _config(way: str, dtype: str) -> TrainingConfig:
    return TrainingConfig(steps=1, dtype=dtype, **WAYS[way])


def _student(directory: Path, config: TrainingConfig) -> ScoringModel:
    model = load_model(directory, DTYPES[config.dtype], CPU)
    choose_trained(model, config)
    return ScoringModel(model, model.config.vocab_size, Reads(label=True)).train()


def _bytes(tensors) -> int:
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _lines(plan) -> dict[str, int]:
    return {line.name: line.size for line in plan.lines}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, "everything") for kind in MODELS] + [("llama-tied", way) for way in list(WAYS)[1:]] + [("gpt2", "lora")],
)
def test_states_are_planned_to_the_byte(directories, kind, way, dtype):
    config = _config(way, dtype)
    facts = student_memory(directories[kind], config, ROWS, TOKENS)
    planned = _lines(plan_memory(facts, None, Layout(ROWS, TOKENS, 1), Reading(1)))
    student = _student(directories[kind], config)
    assert planned["student parameters"] == _bytes(student.parameters())

    backend = PlainBackend(student, config)
    trained = [p for p in student.parameters() if p.requires_grad]
    loss = sum((p.float() ** 2).sum() for p in trained)
    loss.backward()
    of_one_pass = _bytes(p.grad for p in trained)
    backend.backward(sum((p.float() ** 2).sum() for p in trained) * 0, last=True)
    sums = _bytes(p.grad for p in backend._masters.values())
    assert planned["gradients"] == sums + (of_one_pass if dtype == "bf16" else 0)
    backend.step(0)
    moments = [state[kind] for state in backend._optimiser.state.values() for kind in ("exp_avg", "exp_avg_sq")]
    assert planned["Adam's moments"] == _bytes(moments)
    masters = _bytes(backend._masters.values())
    assert planned.get("master weights", 0) == (masters if dtype == "bf16" else 0)


def _kept_by_a_real_pass(student: ScoringModel) -> int:
    """Bytes that autograd keeps of a forward pass over a padded batch, up to the final hidden states."""
    model = student.model
    ids = torch.randint(1, model.config.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[1, TOKENS // 2 :] = 0
    kept = KeptBytes(model)
    with kept.counting():
        model.base_model(input_ids=ids, attention_mask=attention, use_cache=False)
    return kept.total


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, "everything") for kind in MODELS if kind != "mixtral"] + [("llama-untied", way) for way in list(WAYS)[1:]],
)
def test_activations_are_those_that_a_real_pass_keeps(directories, kind, way, dtype):
    config = _config(way, dtype)
    planned = student_memory(directories[kind], config, ROWS, TOKENS).activations
    measured = _kept_by_a_real_pass(_student(directories[kind], config))
    # Token ids, positions and rotations beside the layers are the difference.
    assert planned == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_llama_layer_keeps_what_the_formula_says(tmp_path, dtype):
    kept = []
    for layers in (1, 2):
        config = LlamaConfig(**SMALL | {"num_hidden_layers": layers})
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(layers))
        kept.append(student_memory(tmp_path / str(layers), _config("everything", dtype), ROWS, TOKENS).activations)
    width, inner, heads, head_width, item = 32, 48, 4, 8, {"fp32": 4, "bf16": 2}[dtype]
    norms = 2 * width * (4 + item) + 8
    inputs = 2 * width * item
    attention = 4 * heads * head_width * item + 4 * heads + TOKENS * item
    mlp = 4 * inner * item
    assert kept[1] - kept[0] == ROWS * TOKENS * (norms + inputs + attention + mlp)


def test_what_cannot_be_run_on_shapes_is_unknown(directories, monkeypatch):
    def looks_at_values(model, inputs_embeds, **options):
        return inputs_embeds[inputs_embeds > 0].item()

    monkeypatch.setattr(LlamaModel, "forward", looks_at_values)
    facts = student_memory(directories["llama-tied"], TrainingConfig(steps=1), ROWS, TOKENS + 1)
    plan = plan_memory(facts, None, Layout(ROWS, TOKENS, 1), Reading(1))
    assert [line.split() for line in plan.table() if "activations" in line] == [["activations", "unknown"]]
    assert plan.total("device") > facts.parameter_bytes


def test_nothing_is_loaded(directories, tmp_path):
    (tmp_path / "config.json").write_text((directories["gemma"] / "config.json").read_text())
    facts = student_memory(tmp_path, TrainingConfig(steps=1, dtype="fp32"), ROWS, TOKENS)
    with safe_open(directories["gemma"] / "model.safetensors", framework="pt") as file:
        numbers = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert facts.parameters == numbers


@pytest.mark.demo
def test_smollm2_weighs_what_its_file_says(smollm2_dir):
    header = json.loads(_header(smollm2_dir / "model.safetensors"))
    sizes = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    facts = teacher_memory(smollm2_dir, "bf16", 1, 8)
    assert facts.parameter_bytes == sum(end - start for start, end in sizes)
    assert facts.parameters == 134_515_008


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "mixtral"])
def test_the_planned_cache_is_the_one_that_writing_leaves(directories, kind, dtype):
    model = load_model(directories[kind], DTYPES[dtype], CPU)
    ids = torch.randint(1, 70, (ROWS, 20), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
    kept = [tensor for layer in written.past_key_values.layers for tensor in (layer.keys, layer.values)]
    # The last token is written and not read.
    assert cache_memory(directories[kind], dtype, ROWS, 20 + 5 - 1) == _bytes(kept)


def test_the_cache_of_a_llama_is_what_the_formula_says(directories):
    layers, key_value_heads, width, item = 3, 2, 8, 2
    planned = cache_memory(directories["llama-tied"], "bf16", ROWS, TOKENS)
    assert planned == 2 * layers * key_value_heads * width * item * ROWS * TOKENS


def test_what_a_step_needs_and_what_writing_needs_are_not_there_together(directories):
    config = _config("everything", "fp32")
    student = student_memory(directories["llama-tied"], config, ROWS, TOKENS)
    layout, reading = Layout(ROWS, TOKENS, 1), Reading(1)
    without = plan_memory(student, None, layout, reading)
    in_a_step = sum(line.size for line in without.lines if line.when == "in a step")
    always = sum(line.size for line in without.lines if line.when == "always")
    assert without.total("device") == always + in_a_step
    few, many = (plan_memory(student, None, layout, reading, rollouts=Rollouts(1, 8, size)) for size in (1, in_a_step))
    assert few.total("device") == without.total("device")
    at_work = _lines(many)["rollouts at work"]
    assert many.total("device") == always + in_a_step + at_work
    assert at_work == round(student.activations / 3 * 8 / (ROWS * TOKENS) + in_a_step / 3) + 64 * 70
    assert many.table()[-1].endswith("while the student writes")


def _model(parameters: int) -> ModelMemory:
    return ModelMemory(2 * parameters, parameters, parameters, 0, True, 1, 1, 1, 2, 0)


@pytest.mark.parametrize(("stage", "published"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_splits_as_in_its_paper(stage, published):
    # Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 devices, bf16 gradients alone; ours are added up in
    # float32 as well.
    layout = Layout(1, 1, 1, processes=64, student_stage=stage)
    lines = _lines(plan_memory(_model(7_500_000_000), None, layout, Reading(0)))
    states = lines["student parameters"] + lines["master weights"] + lines["Adam's moments"]
    their_gradients = 2 * 7.5e9 / (64 if stage >= 2 else 1)
    assert (states + their_gradients) / 1e9 == pytest.approx(published, abs=0.05)


def test_what_is_offloaded_is_not_on_the_device():
    offloaded = {"offload_optimizer": "cpu", "offload_parameters": "nvme"}
    layout = Layout(1, 1, 1, processes=2, student_stage=3, **offloaded)
    plan = plan_memory(_model(1_000_000), None, layout, Reading(0))
    assert plan.total("host") == 500_000 * (4 + 4 + 8) + 2 * 500_000  # gradients, masters, moments; one pass in bf16
    assert plan.total("nvme") == 500_000 * 2
    record = plan.record()
    assert record["total"]["host"] == plan.total("host")
    assert {line["place"] for line in record["lines"]} == {"device", "host", "nvme"}


def test_quantised_weights_leave_embeddings_and_head_alone(directories):
    model = LlamaForCausalLM.from_pretrained(directories["llama-untied"])
    linear = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    others = sum(p.numel() for p in model.parameters()) - linear
    sizes = {d: teacher_memory(directories["llama-untied"], d, 1, 8).parameter_bytes for d in ("int8", "nf4", "bf16")}
    assert sizes["bf16"] == 2 * (linear + others)
    assert sizes["int8"] == 2 * others + linear
    assert sizes["nf4"] == 2 * others + round(linear * 4.127 / 8)


@pytest.mark.parametrize(
    ("options", "rows", "passes"),
    [
        ({"batch_windows": 16}, 4, 1),
        ({"batch_windows": 16, "micro_batch_windows": 2}, 2, 2),
        ({"batch_tokens": 1600, "window_tokens": 100, "packing": True}, 4, 1),
        ({"batch_tokens": 1700, "window_tokens": 100, "packing": True, "micro_batch_windows": 2}, 2, 3),
    ],
)
def test_the_largest_micro_batch_is_planned(options, rows, passes):
    layout = layout_of(TrainingConfig(steps=1, **options), {"student": 2}, 4, CPU)
    assert (layout.rows, layout.passes, layout.student_stage, layout.processes) == (rows, passes, 2, 4)


def test_what_waits_in_host_memory_waits_beside_a_model_on_the_cpu():
    zero = {"student": 3, "offload_optimizer": "cpu", "offload_parameters": "nvme"}
    config = TrainingConfig(steps=1)
    on_cpu, on_gpu = (layout_of(config, zero, 2, torch.device(name)) for name in ("cpu", "cuda"))
    assert (on_cpu.offload_optimizer, on_cpu.offload_parameters) == ("none", "nvme")
    assert (on_gpu.offload_optimizer, on_gpu.offload_parameters) == ("cpu", "nvme")


def _report(
    student: Path,
    teaching: Path | Teaching,
    tmp_path: Path,
    losses: list,
    *,
    zero: Zero | None = None,
    resources: dict | None = None,
    world_size: int = 1,
    on_policy: dict | None = None,
    **options,
) -> tuple[list[str], dict]:
    lines: list[str] = []
    inputs, place = {"student": {"s": student}}, {"resources": resources or {}, "world_size": world_size}
    ctx = StageContext(config=None, inputs=inputs, work=tmp_path, out=tmp_path, progress=lines.append, **place)
    config = TrainingConfig(steps=1, batch_windows=4, window_tokens=64, **options)
    entries = [LossEntry.model_validate(loss) for loss in losses]
    teaching = teaching if isinstance(teaching, Teaching) else Teaching(teaching)
    written = None if on_policy is None else OnPolicyOptions(**on_policy)
    report_memory(ctx, config, entries, [teaching], CPU, zero or Zero(), written)
    return lines, json.loads((tmp_path / "memory_plan.json").read_text())


def test_the_plan_is_shown_and_recorded(directories, tmp_path):
    losses = ["alm", {"hidden_states": {"layers": "all"}}, "same_vocabulary"]
    lines, record = _report(directories["llama-tied"], directories["gpt2"], tmp_path, losses)
    names = {line["name"] for line in record["lines"]}
    assert {"student parameters", "activations", "output head", "distributions", "teacher parameters"} <= names
    assert lines[0] == "25,504 of 25,504 parameters train"
    assert f"at most {record['total']['device'] / GIB:.2f} GiB" in lines[1]
    for name in names:
        assert sum(line.strip().startswith(name) for line in lines) >= 1, name
    assert not any("warning" in line for line in lines)


@pytest.mark.parametrize(
    ("on_policy", "world_size", "rows"),
    [
        ({"fraction": 1.0}, 1, 4),
        ({"fraction": 0.75}, 2, 2),
        ({"fraction": 1.0, "batch": 3}, 2, 3),
        ({"batch": 9}, 1, 4),
    ],
)
def test_rollouts_are_planned_as_full_windows_of_all_that_are_written_together(
    directories, tmp_path, on_policy, world_size, rows
):
    student = directories["llama-untied"]
    lines, record = _report(student, student, tmp_path, ["alm"], world_size=world_size, on_policy=on_policy)
    (cache,) = (line for line in record["lines"] if line["name"] == "rollouts' cache")
    assert cache["size"] == cache_memory(student, "bf16", rows, 64) == 2 * 3 * 2 * 8 * 2 * 64 * rows
    assert cache["when"] == "while the student writes"
    assert any(line.strip().startswith("rollouts at work") for line in lines)


def test_nothing_is_planned_for_a_student_that_writes_nothing(directories, tmp_path):
    student = directories["llama-untied"]
    plain, none = (
        _report(student, student, tmp_path, ["alm"], on_policy=each)[1]["lines"] for each in (None, {"fraction": 0.0})
    )
    assert {line["name"] for line in plain} == {line["name"] for line in none}
    assert "rollouts' cache" not in {line["name"] for line in none}


@pytest.mark.parametrize(
    ("dtype", "way", "stage", "copies"),
    [
        # Of 25,504 parameters 2,240 are the tied embedding's, 70 rows of width 32.
        ("bf16", "everything", 0, 4 * 25_504),
        ("bf16", "embeddings", 0, 4 * 2_240),
        ("fp32", "everything", 0, 0),
        ("fp32", "everything", 2, 4 * 2_240),
        ("bf16", "everything", 1, 4 * 25_504 + 4 * 2_240),
    ],
)
def test_the_average_of_the_student_is_planned(directories, tmp_path, dtype, way, stage, copies):
    student = directories["llama-tied"]
    average = Teaching(student, dtype=dtype, average=0.999)
    resources = {"zero": {"student": stage}}
    _, record = _report(student, average, tmp_path, ["alm"], resources=resources, dtype=dtype, **WAYS[way])
    sizes = {line["name"]: line["size"] for line in record["lines"]}
    assert sizes.get("copies for the teacher", 0) == copies
    assert sizes["teacher parameters"] == 25_504 * {"bf16": 2, "fp32": 4}[dtype]


def test_the_bucket_is_the_one_that_deepspeed_gets(directories, tmp_path):
    student, config = directories["llama-tied"], TrainingConfig(steps=1, batch_windows=4, window_tokens=64)
    for given, bucket in ((None, 25_504), ({"zero_optimization": {"reduce_bucket_size": 7_000}}, 7_000)):
        resources = {"zero": {"student": 2}} | ({"deepspeed": given} if given else {})
        ctx = StageContext(
            config=None, inputs={"student": {"s": student}}, work=tmp_path, out=tmp_path, resources=resources
        )
        zero = Zero.of(ctx, config, 4, 1, "bf16")
        _, record = _report(student, student, tmp_path, ["alm"], zero=zero, resources=resources)
        (line,) = (line for line in record["lines"] if line["name"] == "communication")
        assert line["size"] == 2 * bucket
        recorded = json.loads((tmp_path / "deepspeed.json").read_text())["student"]["zero_optimization"]
        assert recorded["reduce_bucket_size"] == bucket


def test_a_plan_that_does_not_fit_is_a_warning(directories, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.training.memory.memory_report._available", lambda device, processes: 1000)
    lines, record = _report(directories["llama-tied"], directories["gpt2"], tmp_path, ["alm"])
    assert record["available"] == 1000
    assert "warning: the memory plan exceeds what there is; lower micro_batch_windows" in lines[-1]


def test_on_a_cpu_the_plan_is_of_the_whole_process():
    """100 MiB of tensors in a process of 400: those, 768 for what libraries keep, and a tenth of the tensors."""
    tensors = MemoryPlan((Line("student parameters", 80 * 2**20), Line("activations", 20 * 2**20, when="in a step")))
    plan = tensors.of_process(400 * 2**20)
    assert plan.total("device") == (100 + 400 + 768 + 10) * 2**20
    assert [line.name for line in plan.lines[2:]] == ["process so far", "allowance"]


def test_a_gpu_is_planned_without_the_process(directories, tmp_path, monkeypatch):
    student = directories["llama-tied"]
    names = {}
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr("stages.training.memory.memory_report._available", lambda device, processes: 1 << 40)
        ctx = StageContext(config=None, inputs={"student": {"s": student}}, work=tmp_path, out=tmp_path)
        config = TrainingConfig(steps=1, batch_windows=4, window_tokens=64)
        report_memory(ctx, config, [LossEntry.model_validate("cross_entropy")], [], torch.device(kind), Zero())
        record = json.loads((tmp_path / "memory_plan.json").read_text())
        names[kind] = [line["name"] for line in record["lines"]]
    assert names["cpu"] == [*names["cuda"], "process so far", "allowance"]
