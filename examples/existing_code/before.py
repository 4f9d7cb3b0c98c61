"""Match the mean features of synthetic and real images, as many repositories do.

python -m examples.existing_code.before
"""

import torch
from torch import nn

import fastdm
from examples.existing_code.augmentation import DiffAugment, ParamDiffAug


def main(iterations: int = 50) -> list[float]:
    """Returns the losses."""
    digits = fastdm.open_dataset("digits")
    real = digits.train.images / 255
    labels = digits.train.labels
    synthetic = torch.stack([real[labels == c][:1] for c in range(10)]).requires_grad_()
    optimiser = torch.optim.SGD([synthetic], lr=0.5, momentum=0.5)
    param = ParamDiffAug()
    losses = []
    for iteration in range(iterations):
        torch.manual_seed(iteration)
        features = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
        loss = torch.zeros(())
        for c in range(10):
            seed = 100 * iteration + c
            images = DiffAugment(real[labels == c][:64], "color_flip", seed=seed, param=param)
            learnt = DiffAugment(synthetic[c], "color_flip", seed=seed, param=param)
            loss = loss + (features(images).mean(0).detach() - features(learnt).mean(0)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item() / 10)
    print(f"loss {losses[0]:.3f} at the start, {losses[-1]:.3f} after {iterations} iterations")
    return losses


if __name__ == "__main__":
    main()
