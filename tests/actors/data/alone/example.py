import sys
from pathlib import Path

import numpy as np
import torch

from actors.data import Loader

path = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint.pt")


def digits(i: int) -> tuple[np.ndarray, int]:
    """Sample i: a noisy picture of one of ten patterns, and which one it is."""
    patterns = np.random.default_rng(0).normal(size=(10, 64))
    return patterns[i % 10].astype(np.float32), i % 10


def noise(sample: tuple[np.ndarray, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    image, label = sample
    return image + rng.normal(size=64, scale=0.3).astype(np.float32), label


# In place of torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True, num_workers=2).
loader = Loader(range(2000), batch_size=50, stages=[digits, noise], shuffle=True, num_workers=2)
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if path.exists():
    state = torch.load(path)
    model.load_state_dict(state["model"])
    loader.load_state_dict(state["loader"])

while loader.epoch < 2:
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(images)), torch.from_numpy(labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        new = path.with_suffix(".new")  # whole, or not there
        torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, new)
        new.replace(path)
        print(
            f"epoch {loader.epoch}  loss {loss.item():.4f}  samples {loader.samples[:3]}",
            flush=True,
        )
