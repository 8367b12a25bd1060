import torch

from kernels.optimizers import draws

MASK = 2**64 - 1
KEY = 10880777596419574554  # of (1, "a", 2); a change breaks the replay of old runs


def splitmix(key: int, index: int) -> int:
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_words_are_splitmix64_as_published():
    """Wrapping int64 arithmetic must equal unsigned arithmetic, for keys of either sign."""
    for key in (0, 1234567, MASK, 1 << 63):
        got = [word & MASK for word in draws.words(key, 50).tolist()]
        assert got == [splitmix(key, i) for i in range(50)]
    assert draws.words(0, 1).tolist()[0] & MASK == 0xE220A8397B1DCDAF  # published test vector


def test_the_python_and_the_tensor_draw_agree():
    for key in (0, 5, MASK):
        assert draws.fraction(key) == (splitmix(key, 0) >> 11) / 2**53


def test_uniform_numbers_fill_the_unit_interval_evenly():
    x = draws.uniform(draws.key(3, "test"), 200_001)
    assert x.shape == (200_001,)
    assert 0.0 <= float(x.min()) <= float(x.max()) < 1.0
    counts = torch.histc(x, 20, 0.0, 1.0)
    assert float((counts / 10_000 - 1).abs().max()) < 0.05
    assert abs(float(torch.corrcoef(torch.stack((x[:-1], x[1:])))[0, 1])) < 0.01
    assert torch.equal(x * 2.0**24, (x * 2.0**24).round())


def test_signs_are_fair_and_a_function_of_their_key():
    s = draws.signs(draws.key(3, "test"), 100_001)
    assert set(s.tolist()) == {-1.0, 1.0}
    assert abs(float(s.mean())) < 0.02
    assert torch.equal(s[:777], draws.signs(draws.key(3, "test"), 777))
    other = draws.signs(draws.key(4, "test"), 100_001)
    assert abs(float((s * other).mean())) < 0.02


def test_keys_differ_with_every_part_and_do_not_run_together():
    keys = [
        draws.key(1, "a", 2),
        draws.key(1, "a", 3),
        draws.key(2, "a", 2),
        draws.key(1, "b", 2),
        draws.key(1, "a2"),
        draws.key(12, "a"),
    ]
    assert len(set(keys)) == len(keys)
    assert draws.key(1, "a", 2) == KEY
