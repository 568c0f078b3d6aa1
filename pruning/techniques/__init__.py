"""One file per technique that scores, prunes or quantises the weight of one layer.

May import `passes`.
"""

from pruning.techniques.admm import ADMM
from pruning.techniques.gptq import GPTQ
from pruning.techniques.magnitude import Magnitude
from pruning.techniques.obd import OBD
from pruning.techniques.ria import RIA
from pruning.techniques.sparsegpt import SparseGPT
from pruning.techniques.swaps import Swaps
from pruning.techniques.wanda import Wanda

__all__ = ["ADMM", "GPTQ", "OBD", "RIA", "AnyTechnique", "Magnitude", "SparseGPT", "Swaps", "Wanda"]

AnyTechnique = Magnitude | OBD | Wanda | RIA | Swaps | SparseGPT | ADMM | GPTQ
