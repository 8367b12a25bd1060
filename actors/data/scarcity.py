"""Whether a MemoryError means what it says.

Python's parser raises one for text that is nested too deep, which is the sample's fault and the
same everywhere. One for want of memory is this process's trouble: the sample is fine, and calling
it bad would train on other data than a machine with more memory does.
"""

# More than anything allocated for a sample between the error and this question.
_PROBE_BYTES = 16 << 20


def memory_is_short() -> bool:
    """Whether a moderate amount of memory cannot be had now."""
    try:
        bytearray(_PROBE_BYTES)
    except MemoryError:
        return True
    return False
