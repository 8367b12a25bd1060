"""How optimizers and codecs keep a tensor between two steps: as it is, or as codes with scales.

The same declarations as kernels/optimizers/state.py, which nothing here may import; a test holds
the two together.
"""

from math import prod

from actors.published import TensorSpec

# Tensors of fewer elements are kept in float32 whatever the kind.
SMALLEST_QUANTISED = 4096

_CODES = {"linear": "int8", "dynamic": "uint8", "unsigned": "uint8"}


def stored(
    name: str, shape: tuple[int, ...], kind: str, block: int = 256
) -> tuple[TensorSpec, ...]:
    """The tensors that keep `name`, a tensor of `shape`.

    `kind` is float32, float16, linear, dynamic, unsigned (one byte an element) or int4 (half a
    byte); codes have a float32 scale for every `block` of them.
    """
    small = prod(shape) < SMALLEST_QUANTISED
    if kind == "float16":
        return (TensorSpec(name, "float16", shape),)
    if kind == "float32" or small:
        return (TensorSpec(name, "float32", shape),)
    scale = TensorSpec(f"{name}.scale", "float32", (-(-prod(shape) // block),))
    if kind == "int4":
        return TensorSpec(f"{name}.codes", "uint8", (-(-prod(shape) // 2),)), scale
    return TensorSpec(f"{name}.codes", _CODES[kind], shape), scale
