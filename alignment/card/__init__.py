"""Tokenizer cards: what a vocabulary holds and what it makes of text, without any model."""
