"""Giving a model another vocabulary: the parts of the init stage, imported when it runs."""
