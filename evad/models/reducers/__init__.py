"""Other ways to reduce tokens than the paper's; what they need to know beside, they keep in subclasses of `Tokens`."""
