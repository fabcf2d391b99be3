"""Tasks of lm-evaluation-harness (the package ``lm_eval``), asked of every model through one ``Scorer``.

Tasks speak of text alone, so a ``Scorer`` can answer them whatever its tokenizer; ``model`` is the adapter, ``tasks``
finds tasks without a network, ``running`` asks one model, ``marking`` reads the answers once more in our own terms, and
``section`` puts the models side by side.
"""
