"""The planner's memory estimates, held against what autograd and the layouts really keep."""

import msgspec
import pytest
import torch

from actors import plan_memory, topology
from actors.optimizer.layout import state_layout
from actors.topology import ModelSpec
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.model.objective import objective

SMALL = topology.emulate(topology.load("config_b"))


def kept_by_autograd(model: ModelSpec, rows: int) -> int:
    """Bytes of distinct storages saved for the backward pass, weights aside."""
    lm = LoopLM(ModelConfig.of(msgspec.structs.asdict(model)), "codes")
    lm.initialise(seed=0)
    weights = {t.untyped_storage().data_ptr() for t in (*lm.parameters(), *lm.buffers())}
    seen: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    tokens = torch.randint(
        model.vocab_size, (rows, model.seq_len + 1), generator=torch.Generator().manual_seed(0)
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        objective(lm, tokens, torch.zeros_like(tokens), entropy_weight=0.05)
    return sum(seen.values())


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("change", [{}, {"loops": 3}, {"dim": 192, "layers": 3}])
def test_activations_are_what_autograd_keeps(rows: int, change: dict[str, int]):
    model = msgspec.structs.replace(SMALL.model, **change)
    estimate = plan_memory.activation_bytes(model, rows) - plan_memory.logit_bytes(model, rows)
    assert estimate == pytest.approx(kept_by_autograd(model, rows), rel=0.1)


def test_checkpointing_keeps_one_state_per_layer_call_and_one_layer():
    plain = msgspec.structs.replace(SMALL.model, layers=12)
    saving = msgspec.structs.replace(plain, activation_checkpointing=True)
    assert plan_memory.activation_bytes(saving, 8) < plan_memory.activation_bytes(plain, 8) / 4


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_shards_state_and_weights_fill_its_segment(shards: int):
    actors = msgspec.structs.replace(SMALL.actors, optimizer_shards=shards)
    t = msgspec.structs.replace(SMALL, actors=actors)
    for k in range(shards):
        memory = plan_memory.of_shard(t, k)
        assert memory.weights + memory.optimizer == state_layout(t, k).total_bytes


def test_more_rows_take_more():
    sizes = [plan_memory.activation_bytes(SMALL.model, rows) for rows in (1, 2, 4, 8)]
    assert sizes == sorted(set(sizes))
