"""A run that has diverged: numbers that are not finite have come, and no step may be built on them.

A shard looks at every loss, sum of sketches, mean gradient and new weight before it keeps anything
of it; so the steps that are committed, and checkpoints of them, are free of such numbers. No torch.
"""

REMEDY = "lower the learning rates, then resume from the last checkpoint or start anew"


class Diverged(RuntimeError):
    """A rank cannot say what its gradient is; the message says why and what to do."""
