"""Questions that tell tokenizers apart: made here from a name, options and a seed, never downloaded.

A suite (``questions.Suite``) is a list of questions in text; ``asking`` puts them to a model, ``marking`` reads what it
answered, ``section`` is the section of the report. The suites themselves are ``langgame``, ``cute`` and ``addition``.
"""
