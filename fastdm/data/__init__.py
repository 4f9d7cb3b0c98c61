"""Data sets as class-sorted uint8 pools."""

from fastdm.data.pool import Dataset, Pool
from fastdm.data.sources import open_dataset

__all__ = ["Dataset", "Pool", "open_dataset"]
