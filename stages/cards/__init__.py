"""The commands about tokenizers alone, ``card`` and ``mixture``: what they read, and how their findings are shown."""
