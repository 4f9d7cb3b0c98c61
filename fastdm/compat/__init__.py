"""Other code's calls: what code written for DatasetCondensation imports, under the names that it uses."""

from fastdm.compat.diff_augment import DiffAugment, ParamDiffAug

__all__ = ["DiffAugment", "ParamDiffAug"]
