"""The longest-suffix expansion of the input embedding of byte-level students."""
