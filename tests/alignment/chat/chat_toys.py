"""Chat templates with the habits of the common families, and tokenizers small enough to know every token of."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DEFAULT_SYSTEM = "You are a helpful ferry."

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HEADER = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|header|>' + message['role'] + '<|/header|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)

INSTRUCTION = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = false %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end>\n{% endfor %}"
)

# Reasoning is shown after the last user turn only; tools and tool calls are JSON.
THINKING = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools><|im_end|>\n{% endif %}"
    "{% set found = namespace(last_user=0) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set found.last_user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}{% set content = message.content or '' %}"
    "{% if message.role == 'assistant' %}{% set reasoning = message.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > found.last_user %}{{ '<think>\n' + reasoning + '\n</think>\n\n' }}{% endif %}"
    "{{ content }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user\n{% endif %}"
    "<tool_response>{{ content }}</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)

# A user's turn ends where the marker of the answer begins: nothing of its own ends it.
MARKERS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|User|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|Assistant|>{{ message['content'] }}<|end|>"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)

SPECIALS = {
    CHATML: ["<|im_start|>", "<|im_end|>"],
    HEADER: ["<|header|>", "<|/header|>", "<|eot|>"],
    INSTRUCTION: [],
    TURNS: ["<turn>", "<end>"],
    THINKING: ["<|im_start|>", "<|im_end|>"],
    MARKERS: ["<|User|>", "<|Assistant|>", "<|end|>"],
}
TEMPLATES = {
    "chatml": CHATML,
    "header": HEADER,
    "instruction": INSTRUCTION,
    "turns": TURNS,
    "thinking": THINKING,
    "markers": MARKERS,
}


def byte_tokenizer(template: str | None, *, specials: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a byte, with a template and its control tokens besides ``<s>`` and ``</s>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({entry: index for index, entry in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return with_template(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"), template, specials
    )


def with_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None, specials: list[str] | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer with a template and its control tokens."""
    strings = SPECIALS.get(template, []) if specials is None else specials
    tokenizer.add_special_tokens(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "additional_special_tokens": [AddedToken(string, normalized=False) for string in strings],
        }
    )
    tokenizer.chat_template = template
    return tokenizer


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}
