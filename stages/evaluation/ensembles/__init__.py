"""Several models as one: of any tokenizers by bytes, of one tokenizer by tokens."""
