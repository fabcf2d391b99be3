"""A first recipe on somebody's own text."""
