"""Exact probabilities of bytes under a model of tokens: summed over the tokenizer's coverings of a byte prefix."""
