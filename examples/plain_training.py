"""Train an ordinary PyTorch network on a condensed set, without fastdm in the training.

python -m examples.plain_training [SET]
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastdm


def main(path: str | None = None, epochs: int = 200) -> float:
    """Train on the set in the file, by default on one of digits that is made first; returns the test accuracy."""
    digits = fastdm.open_dataset("digits")
    if path is None:
        path = "result/plain_training.safetensors"
        fastdm.condense(digits, ipc=10, iterations=100, batch_real=64, device="cpu").save(path)
    synthetic = fastdm.SyntheticSet.load(path)

    # From here on everything is PyTorch's own. The images are normalised: whatever is tested must be, too.
    loader = DataLoader(synthetic.as_dataset(), batch_size=32, shuffle=True)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for images, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()

    assert digits.test is not None
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (synthetic.mean, synthetic.std))
    tests = TensorDataset((digits.test.images / 255 - mean) / std, digits.test.labels)
    with torch.inference_mode():
        right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in DataLoader(tests, 256))
    accuracy = right / len(tests)
    print(f"trained on {len(synthetic)} condensed images from {Path(path)}: {100 * accuracy:.1f} % of the test images")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
