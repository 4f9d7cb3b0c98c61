"""Some classes of a data set, in any order."""

import torch

from fastdm.data import open_dataset
from fastdm.data.subset import of_classes


def test_labels_follow_the_order_of_the_classes() -> None:
    digits = open_dataset("digits")
    few = of_classes(digits, [7, 0, 3])
    assert few.class_names == ("7", "0", "3")
    assert (few.name, few.mean) == (digits.name, digits.mean)
    assert digits.test is not None
    assert few.test is not None
    for whole, part in ((digits.train, few.train), (digits.test, few.test)):
        assert part.class_offsets.dtype == torch.int64
        for label, old in enumerate((7, 0, 3)):
            assert torch.equal(part.images[part.labels == label], whole.images[whole.labels == old])
        assert len(part) == sum(int((whole.labels == old).sum()) for old in (7, 0, 3))


def test_a_set_without_a_test_part_has_none_in_part() -> None:
    plain = open_dataset((torch.zeros(4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 2])))
    assert of_classes(plain, [1]).test is None
    assert of_classes(plain, [1]).train.class_sizes.tolist() == [2]
