"""What changes when the same text reaches a model in other tokens: cut prompts, random segmentations, misspellings."""
