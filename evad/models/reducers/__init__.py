"""Alternatives to the paper's token pruning; subclasses of `Tokens` store what they need to know about tokens."""
