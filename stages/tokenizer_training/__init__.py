"""How the ``tokenizer`` stage makes tokenizers. Most modules import transformers: import them inside functions."""
