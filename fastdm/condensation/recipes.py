"""Sets of settings by name: the paper's, and one that reaches more than the mean in random networks does."""

from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.errors import one_of

RECIPES = ("dm", "trained")


def recipe_settings(recipe: str, dataset: Dataset, ipc: int) -> Settings:
    """The settings of a recipe for a data set.

    "dm": the paper's, which are the defaults. "trained": the class means in networks of a pool (`fastdm.train_pool`),
    with

    - partition 2 (Kim et al., ICML 2022) where the images can be halved; pixels kept in [0, 1], and their learning rate
      in those units;
    - color, crop and cutout together for every class (mode "M"), as IDC, DANCE and TGDD augment;
    - snapshots of all of a training, from random to trained, and the cross-entropy of the synthetic images in a
      snapshot up to 6 later, with TGDD's weights: 2.5 below an ipc of 50, else 0.5;
    - 128 real images per class, 10,000 iterations (DANCE, TGDD, NCFM).
    """
    one_of("recipe", recipe, RECIPES)
    if recipe == "dm":
        return Settings(ipc=ipc)
    halved = all(side % 2 == 0 for side in dataset.image_shape[1:])
    return Settings(
        ipc=ipc,
        iterations=10_000,
        batch_real=128,
        strategy="color_crop_cutout",
        aug_mode="M",
        partition=2 if halved else 1,
        networks="trained",
        ce_weight=2.5 if ipc < 50 else 0.5,
    )
