"""Published accuracies of DM, in percent, to compare with: ConvNet, 20 networks or more, the paper's budget."""

PUBLISHED: dict[str, dict[int, tuple[float, float]]] = {
    "CIFAR10": {1: (26.0, 0.8), 10: (48.9, 0.6), 50: (63.0, 0.4)},
    "CIFAR100": {1: (11.4, 0.3), 10: (29.7, 0.3), 50: (43.6, 0.4)},
    "TinyImageNet": {1: (3.9, 0.2), 10: (12.9, 0.4), 50: (24.1, 0.3)},
}
"""mean ± standard deviation by data set and images per class, as later papers' tables quote them."""

README = {"CIFAR10": {100: 67.0, 200: 71.2, 500: 76.1, 1000: 79.8, 1250: 80.8}}
"""Means that the readme of the public code states."""

WHOLE_SET: dict[str, tuple[float, float]] = {
    "CIFAR10": (84.8, 0.1),
    "CIFAR100": (56.2, 0.3),
    "TinyImageNet": (37.6, 0.4),
}
"""mean ± standard deviation of networks trained on the whole set, from the same tables."""


def published_accuracy(dataset: str, ipc: int) -> tuple[float, float | None] | None:
    """(mean, standard deviation or None) in percent of DM on a data set, None where nothing is published."""
    if ipc in PUBLISHED.get(dataset, {}):
        return PUBLISHED[dataset][ipc]
    mean = README.get(dataset, {}).get(ipc)
    return None if mean is None else (mean, None)
