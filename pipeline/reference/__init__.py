"""The reference of every key of a recipe, out of the schema: ``recipes/reference.yaml`` and ``docs/reference.md``.

    python -m pipeline.reference > recipes/reference.yaml
    python -m pipeline.reference --markdown > docs/reference.md

What is said of a key is the docstring under its field; its type, range and default are the field's own.
"""
