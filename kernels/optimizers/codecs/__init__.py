"""Gradients on their way up, in few bytes: codecs by name, and what each of them is.

A codec turns one gradient into payload tensors and back. It never looks at a second gradient, a
clock or a generator: what it remembers from step to step is memory, declared as tensors and owned
by the run like any optimizer state; what is random is a function of a key both sides know.

See `base` for the contract, `named` for the list.
"""
