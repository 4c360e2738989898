"""DCN-V2 in plain PyTorch, as a careful user would write it: one sparse table, everything in memory.

SparseAdam on looked-up rows, fused Adam on the rest, batches cut from tensors in memory, vectors joined
from memory. Variant `bf16`: autocast of the dense part.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from measure import (
    BATCH,
    CROSS_LAYERS,
    DEEP_DIMS,
    DIM,
    LEARNING_RATE,
    Log,
    auc,
    read_options,
    write_result,
)
from torch import nn


class DcnV2(nn.Module):
    def __init__(self, rows, vector_dims):
        super().__init__()
        self.table = nn.Embedding(sum(rows), DIM, sparse=True)
        nn.init.uniform_(self.table.weight, -0.01, 0.01)
        self.offsets = torch.tensor([0, *rows[:-1]]).cumsum(0)
        self.projections = nn.ModuleList(nn.Linear(dim, DIM) for dim in vector_dims)
        width = DIM * (len(rows) + len(vector_dims))
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(CROSS_LAYERS))
        layers, last = [], width
        for dim in DEEP_DIMS:
            layers += [nn.Linear(last, dim), nn.ReLU()]
            last = dim
        self.deep = nn.Sequential(*layers)
        self.logit = nn.Linear(width + last, 1)

    def forward(self, ids_BF, vectors):
        parts = [self.table(ids_BF + self.offsets).flatten(start_dim=1)]
        parts += [torch.relu(p(v)) for p, v in zip(self.projections, vectors, strict=True)]
        x0 = torch.cat(parts, dim=1)
        x = x0
        for layer in self.cross:
            x = torch.addcmul(x, x0, layer(x))
        return self.logit(torch.cat([x, self.deep(x0)], dim=1))[:, 0]


def main():
    options = read_options()
    log = Log(options.workspace, options.max_rows)
    vectors = [torch.from_numpy(v.astype(np.float32)) for v in log.vectors().values()]
    model = DcnV2(list(log.fields.values()), [v.shape[1] for v in vectors])
    dense = [p for name, p in model.named_parameters() if name != "table.weight"]
    optimizers = [
        torch.optim.SparseAdam([model.table.weight], lr=LEARNING_RATE),
        torch.optim.Adam(dense, lr=LEARNING_RATE, fused=True),
    ]
    item_field = list(log.fields).index("item_id") if vectors else None
    data = {}
    for split, columns in log.splits.items():
        ids = torch.from_numpy(np.stack([columns[name] for name in log.fields], axis=1))
        data[split] = ids, torch.from_numpy(columns["label"].astype(np.float32))

    def scores_of(ids_BF):
        joined = [] if item_field is None else [v[ids_BF[:, item_field].long()] for v in vectors]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.variant == "bf16"):
            return model(ids_BF, joined).float()

    ids, labels = data["train"]
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for rows in torch.randperm(len(ids)).split(BATCH):
        loss = F.binary_cross_entropy_with_logits(scores_of(ids[rows]), labels[rows])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    train_seconds = time.perf_counter() - begun
    train_cpu_seconds = time.process_time() - cpu_begun
    valid_ids, valid_labels = data["valid"]
    begun = time.perf_counter()
    with torch.inference_mode():
        scores = torch.cat([torch.sigmoid(scores_of(part)) for part in valid_ids.split(BATCH)])
    valid_auc = auc(valid_labels.numpy(), scores.double().numpy())
    write_result(
        options.result,
        train_rows=len(ids),
        train_seconds=train_seconds,
        train_cpu_seconds=train_cpu_seconds,
        valid_rows=len(valid_ids),
        valid_seconds=time.perf_counter() - begun,
        valid_auc=valid_auc,
    )


if __name__ == "__main__":
    main()
