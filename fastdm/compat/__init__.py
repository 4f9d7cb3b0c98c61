"""Other code's calls: what code written for DatasetCondensation imports, under the names that it uses."""

from fastdm.compat.diff_augment import DiffAugment, ParamDiffAug
from fastdm.compat.evaluation import evaluate_synset
from fastdm.compat.idc import DiffAug
from fastdm.compat.images import RealImages
from fastdm.compat.matching import dm_loss

__all__ = ["DiffAug", "DiffAugment", "ParamDiffAug", "RealImages", "dm_loss", "evaluate_synset"]
