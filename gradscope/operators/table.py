"""The open set: autograd node type → operator. One file a family, one line here."""

from __future__ import annotations

from gradscope.operators.broadcast import ADD, DIVIDE, EXPAND, MULTIPLY, REPEAT, SUBTRACT
from gradscope.operators.convolution import CONVOLUTION
from gradscope.operators.lookup import EMBEDDING, INDEX
from gradscope.operators.normalization import GROUP_NORM, LAYER_NORM
from gradscope.operators.operator import Operator
from gradscope.operators.product import ADDMM, MM

_OPERATORS: dict[str, Operator] = {
    "AddBackward0": ADD,
    "SubBackward0": SUBTRACT,
    "MulBackward0": MULTIPLY,
    "DivBackward0": DIVIDE,
    "ExpandBackward0": EXPAND,
    "RepeatBackward0": REPEAT,
    "MmBackward0": MM,
    "BmmBackward0": MM,
    "AddmmBackward0": ADDMM,
    "EmbeddingBackward0": EMBEDDING,
    "IndexBackward0": INDEX,
    "ConvolutionBackward0": CONVOLUTION,
    "NativeLayerNormBackward0": LAYER_NORM,
    "NativeGroupNormBackward0": GROUP_NORM,
}


def find_operator(node_name: str) -> Operator | None:
    """The operator of an autograd node type, or None."""
    return _OPERATORS.get(node_name)
