"""Conversions, made once, from what models are shipped as to what transformers loads without code of ours.

``patterns`` and ``errors`` are light; the other modules import torch and transformers: import them inside functions.
"""
