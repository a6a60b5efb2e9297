"""What one layout is."""

import re
from dataclasses import dataclass, field

from ..key_map import KeyMap


@dataclass(frozen=True)
class Layout:
    """How one code base names and shapes the weights of one architecture.

    Args:
        name: for people and command lines.
        architecture: the detector, by its registered name.
        keys: names there and here.
        coco91: class branches have a row for each of COCO's category ids, 0 to 90, not for each of its 80 classes
            (DETR's have one more for "no object").
        one_head: a single class and box branch, stored once, serves all decoder layers.
        unused_row: class branches end in a row for "no object", which their sigmoids do not need: no target is of it.
        box_model: what all keys but the mask head's begin with in a model that has one.
        spellings: regular expressions of names that other versions of that code use, and what they stand for.
    """

    name: str
    architecture: str
    keys: KeyMap
    coco91: bool = False
    one_head: bool = False
    unused_row: bool = False
    box_model: str = ''
    spellings: dict[str, str] = field(default_factory=dict)

    def spell(self, key: str) -> str:
        """A key of any version in the spelling of ``keys``."""
        key = key.removeprefix(self.box_model)
        for pattern, spelling in self.spellings.items():
            key = re.sub(pattern, spelling, key)
        return key

    def unknown(self, keys) -> list[str]:
        """Those of ``keys`` that this layout does not have."""
        return [key for key in keys if not self.keys.knows(self.spell(key))]
