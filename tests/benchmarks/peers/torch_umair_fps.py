"""UMAIR-FPS in plain PyTorch, the paper's equations written down one by one (arXiv 2402.10381).

nn.EmbeddingBag with sparse gradients, SparseAdam on the tables and AdamW on the rest, frozen vectors in
fp32 bags. Called by tests/benchmarks/umair_fps_speed.py; nothing of Tessera is imported.
Shapes: B rows, D table width, E modality width, M modalities, H tower width, N input of the cross.
"""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(in_dim, hidden_dims, *, batch_norm, dropout, activation_on_last=True):
    layers = []
    for number, dim in enumerate(hidden_dims, start=1):
        layers.append(nn.Linear(in_dim, dim))
        if number < len(hidden_dims) or activation_on_last:
            layers += [nn.BatchNorm1d(dim)] * batch_norm + [nn.ReLU()]
            layers += [nn.Dropout(dropout)] * bool(dropout)
        in_dim = dim
    return nn.Sequential(*layers)


class LowRankMixture(nn.Module):
    """x_{l+1} = sum_k g_k(x_l) (x_0 * (U_k tanh(C_k tanh(V_k x_l)) + b)) + x_l, expert by expert."""

    def __init__(self, width, *, layers, rank, experts):
        super().__init__()

        def kernels(*shape):
            return nn.ParameterList(
                nn.init.xavier_normal_(nn.Parameter(torch.empty(shape))) for _ in range(layers)
            )

        self.U_kernels = kernels(experts, width, rank)
        self.V_kernels = kernels(experts, rank, width)
        self.C_kernels = kernels(experts, rank, rank)
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(width, 1)) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(experts))

    def forward(self, x0_BN):
        x_BN = x0_BN
        for U_KNR, V_KRN, C_KRR, bias_N1 in zip(
            self.U_kernels, self.V_kernels, self.C_kernels, self.bias, strict=True
        ):
            experts = []
            for U_NR, V_RN, C_RR in zip(U_KNR, V_KRN, C_KRR, strict=True):
                hidden_BR = torch.tanh(torch.tanh(x_BN @ V_RN.T) @ C_RR.T)
                experts.append(x0_BN * (hidden_BR @ U_NR.T + bias_N1[:, 0]))
            gates_BK = torch.softmax(torch.cat([gate(x_BN) for gate in self.gates], dim=1), dim=1)
            x_BN = (torch.stack(experts, dim=2) * gates_BK[:, None, :]).sum(dim=2) + x_BN
        return x_BN


class PlainUmairFps(nn.Module):
    """The model of configs/model/base.yaml and configs/model/paper.yaml, fusion by attention."""

    def __init__(self, *, tables, table_of, item_features, vectors, interests, settings):
        """Args: tables: rows by table; table_of: table by feature; vectors: [N, E] fp32 by modality,
        zeros where there is none; interests: (modality, feature of the history); settings: the keys of
        a model's preset.
        """
        super().__init__()
        self.table_of, self.item_features = table_of, item_features
        self.user_features = [name for name in table_of if name not in item_features]
        self.interests, self.settings = interests, settings
        width = settings.embedding_dim
        self.tables = nn.ModuleDict({
            name: nn.EmbeddingBag(rows, width, mode="mean", sparse=True)
            for name, rows in tables.items()
        })
        for table in self.tables.values():
            nn.init.uniform_(table.weight, -settings.embedding_init, settings.embedding_init)
        self.frozen = {}
        for name, vectors_NE in vectors.items():
            mask_N1 = vectors_NE.any(dim=1, keepdim=True).float()
            self.frozen[name] = torch.cat([vectors_NE, mask_N1], dim=1)
        dims = {name: vectors_NE.shape[1] for name, vectors_NE in vectors.items()}
        hidden = settings.tower_dims[-1]
        self.projections = nn.ModuleDict({n: nn.Linear(d, hidden) for n, d in dims.items()})
        shared = settings.shared_projection
        taste = sum(hidden if shared else dims[name] for name, _ in interests)
        common = {"batch_norm": settings.batch_norm, "dropout": settings.dropout}
        self.user_tower = mlp(
            taste + (width - 1) * len(self.user_features),
            settings.tower_dims,
            activation_on_last=settings.user_activation,
            **common,
        )
        self.item_tower = mlp((width - 1) * len(item_features), settings.tower_dims, **common)
        dropped = settings.projection_dropout
        self.dropout = nn.Dropout(settings.dropout if dropped is None else dropped)
        self.umcm_dropout = nn.Dropout(settings.umcm_dropout)
        num_modalities = 1 + len(dims)
        self.match = nn.Linear(num_modalities, 1, bias=False) if settings.match else None
        cross_dim = 2 * hidden + num_modalities * settings.match
        self.cross = LowRankMixture(
            cross_dim,
            layers=settings.cross_layers,
            rank=settings.cross_rank,
            experts=settings.cross_experts,
        )
        self.deep = mlp(cross_dim, settings.deep_dims, **common)
        self.logit = nn.Linear(settings.deep_dims[-1], 1)

    def forward(self, ids):
        """Map {feature: (ids, offsets [B])} to logits [B]."""
        with torch.no_grad():
            items = {name: self.pooled(name, ids["item_id"]) for name in self.frozen}
            tastes = [
                (name, self.pooled(name, ids[feature], self.settings.interest_shrinkage))
                for name, feature in self.interests
            ]
        stored = {name: self.tables[table](*ids[name]) for name, table in self.table_of.items()}
        first_order_B = sum(stored_BD[:, -1] for stored_BD in stored.values())
        user = [stored[name][:, :-1] for name in self.user_features]
        for name, (vector_BE, present_B) in tastes:
            if self.settings.shared_projection:
                vector_BE = self.projections[name](vector_BE) * present_B[:, None]
            user.append(vector_BE)
        user_BH = self.user_tower(torch.cat(user, dim=1))
        item_BY = torch.cat([stored[name][:, :-1] for name in self.item_features], dim=1)
        modalities = [self.item_tower(item_BY)]
        present = [torch.ones(len(item_BY))]
        for name, (vector_BE, present_B) in items.items():
            modalities.append(self.dropout(torch.relu(self.projections[name](vector_BE))))
            present.append(present_B)
        modalities_BMH, present_BM = torch.stack(modalities, dim=1), torch.stack(present, dim=1)
        scores_BM = torch.einsum("bh,bmh->bm", user_BH, modalities_BMH)
        weights_BM = torch.softmax(scores_BM.masked_fill(present_BM == 0, -torch.inf), dim=1)
        fused_BH = torch.einsum("bm,bmh->bh", self.umcm_dropout(weights_BM), modalities_BMH)
        parts, direct_B = [fused_BH, user_BH], 0.0
        if self.match is not None:
            match_BM = scores_BM * present_BM
            parts.append(match_BM)
            direct_B = self.match(match_BM)[:, 0]
        deep_BH = self.deep(self.cross(torch.cat(parts, dim=1)))
        return self.logit(deep_BH)[:, 0] + direct_B + first_order_B

    def pooled(self, modality, bag, shrinkage=0.0):
        """Return the mean of the vectors that are there [B, E], and whether there is any [B].

        shrinkage: added to the number of vectors that their sum is divided by.
        """
        sum_BE1 = F.embedding_bag(bag[0], self.frozen[modality], bag[1], mode="sum")
        count_B = sum_BE1[:, -1]
        divisor_B = count_B.clamp_min(1) + shrinkage
        return sum_BE1[:, :-1] / divisor_B[:, None], (count_B > 0).float()

    def load(self, dense, tables):
        """Take the weights of Tessera's dense part by name, and its tables [N, D]."""
        renamed = {
            name.replace(".layers.", ".").replace("projections.linear", "projections"): tensor
            for name, tensor in dense.items()
        }
        for name, table in tables.items():
            renamed[f"tables.{name}.weight"] = table
        self.load_state_dict(renamed)

    def trainer(self, *, learning_rate, weight_decay):
        """Return a function that takes one step on (ids, labels [B]) and returns its loss."""
        tables = [table.weight for table in self.tables.values()]
        is_table = set(map(id, tables))
        rest = [p for p in self.parameters() if id(p) not in is_table]
        optimizers = [
            torch.optim.SparseAdam(tables, lr=learning_rate),
            torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay),
        ]

        def step(ids, labels_B):
            loss = F.binary_cross_entropy_with_logits(self(ids), labels_B)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss.detach()

        return step
