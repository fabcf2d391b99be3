"""The rows of a new vocabulary made from those of an old one: tensors in, rows or weights over old rows out."""
