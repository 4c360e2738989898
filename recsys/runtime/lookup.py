"""Check of TorchRec and FBGEMM: one small table, looked up and updated.

Called by launch/doctor.py.
"""

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def lookup_problems(remedy: str) -> list[str]:
    """Return a sentence where looking up and updating a table of 3 rows gives wrong numbers.

    Args:
        remedy: how to install the packages, for the sentence.
    """
    table = EmbeddingBagConfig(
        name="table", embedding_dim=4, num_embeddings=3, feature_names=["feature"]
    )
    collection = FusedEmbeddingBagCollection(
        tables=[table],
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": 1.0},
        device=torch.device("cpu"),
    )
    # feature   row 0    row 1
    #           [1, 2]   [2]
    ids = KeyedJaggedTensor.from_lengths_sync(
        keys=["feature"], values=torch.tensor([1, 2, 2]), lengths=torch.tensor([2, 1])
    )
    before = collection(ids)["feature"]
    before.sum().backward()
    # One step of SGD at rate 1 takes 1 from table row 1 and 2 from table row 2.
    change = (before - collection(ids)["feature"]).detach()
    if torch.allclose(change, torch.tensor([[3.0], [2.0]]).expand(2, 4), atol=1e-5):
        return []
    return [
        f"TorchRec updated a table of 3 rows by {change.tolist()} instead of 3 and 2: torch, "
        f"torchrec and fbgemm do not fit together; {remedy} in a fresh .venv (`make clean` first)"
    ]
