"""What a step is made of: documents, windows of tokens, micro-batches, and the workers that make them."""
