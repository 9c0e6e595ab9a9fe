"""Tiny members of the families of models that people train."""

from families.adapters import FAMILIES as ADAPTERS
from families.attention import FAMILIES as ATTENTION
from families.convolutional import FAMILIES as CONVOLUTIONAL
from families.family import Family, N
from families.hugging_face import FAMILIES as HUGGING_FACE
from families.recurrent import FAMILIES as RECURRENT
from families.special import FAMILIES as SPECIAL

GROUPS = {
    "transformers": HUGGING_FACE,
    "Adapters (peft)": ADAPTERS,
    "Attention in torch": ATTENTION,
    "Convolutional": CONVOLUTIONAL,
    "Recurrent": RECURRENT,
    "Unusual layers and shapes": SPECIAL,
}
FAMILIES = tuple(family for group in GROUPS.values() for family in group)

__all__ = ["FAMILIES", "GROUPS", "Family", "N"]
