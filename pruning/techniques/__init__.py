"""Layer-wise techniques: one file each, one name each in the union."""

from pruning.techniques.magnitude import Magnitude
from pruning.techniques.sparsegpt import SparseGPT
from pruning.techniques.wanda import Wanda

__all__ = ["AnyTechnique", "Magnitude", "SparseGPT", "Wanda"]

AnyTechnique = Magnitude | Wanda | SparseGPT
