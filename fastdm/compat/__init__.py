"""Other code's calls: what code written for DatasetCondensation imports, under the names that it uses."""

from fastdm.compat.diff_augment import DiffAugment, ParamDiffAug
from fastdm.compat.evaluation import evaluate_synset
from fastdm.compat.images import RealImages
from fastdm.compat.matching import dm_loss

__all__ = ["DiffAugment", "ParamDiffAug", "RealImages", "dm_loss", "evaluate_synset"]
