import subprocess
import sys

from kernels.optimizers.state import SMALLEST_QUANTISED, StateTensor, Storage, declare, nbytes


def test_declaring_state_and_its_schedule_needs_no_torch():
    """Planner and layout count bytes in processes that must stay light."""
    code = (
        "import sys; import kernels.optimizers.state, kernels.optimizers.refresh_schedule; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


def test_bytes_add_up():
    tensors = (StateTensor("a", "float32", (3, 5)), StateTensor("b", "int8", (7,)))
    assert nbytes(tensors) == 67
    assert nbytes(()) == 0
    assert StateTensor("scalar", "int64", ()).nbytes == 8


def test_codes_cost_what_their_kind_says():
    shape = (1000, 1024)
    count = 1000 * 1024
    expected = {
        Storage("float32"): 4 * count,
        Storage("float16"): 2 * count,
        Storage("linear", 2048): count + 4 * 500,
        Storage("dynamic", 256): count + 4 * 4000,
        Storage("unsigned", 3000): count + 4 * 342,  # the last block is partial
        Storage("int4", 128): count // 2 + 4 * 8000,
    }
    for storage, size in expected.items():
        assert nbytes(declare("m", shape, storage)) == size


def test_tensors_too_small_to_gain_are_declared_plain():
    small, large = (SMALLEST_QUANTISED - 1,), (SMALLEST_QUANTISED,)
    assert declare("m", small, Storage("linear")) == (StateTensor("m", "float32", small),)
    assert [t.name for t in declare("m", large, Storage("linear"))] == ["m.codes", "m.scale"]
    assert declare("m", small, Storage("float16")) == (StateTensor("m", "float16", small),)
