"""DCN-V2 with DeepCTR-Torch, by its documented API: feature columns, compile, fit, predict."""

import time

import numpy as np
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN
from measure import BATCH, CROSS_LAYERS, DEEP_DIMS, DIM, Log, auc, read_options, write_result


def main():
    options = read_options()
    log = Log(options.workspace, options.max_rows)
    columns = [SparseFeat(name, rows, embedding_dim=DIM) for name, rows in log.fields.items()]
    # Without its regularisers, of which the one on embeddings would cost every row at every step.
    model = DCN(
        linear_feature_columns=[],
        dnn_feature_columns=columns,
        cross_num=CROSS_LAYERS,
        cross_parameterization="matrix",
        dnn_hidden_units=DEEP_DIMS,
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_cross=0,
        seed=0,
    )
    model.compile("adam", "binary_crossentropy", metrics=[])
    train, valid = log.splits["train"], log.splits["valid"]
    labels = train["label"].astype(np.float32)
    inputs = {name: train[name] for name in log.fields}
    begun, cpu_begun = time.perf_counter(), time.process_time()
    model.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0)
    train_seconds = time.perf_counter() - begun
    train_cpu_seconds = time.process_time() - cpu_begun
    begun = time.perf_counter()
    scores = model.predict({name: valid[name] for name in log.fields}, batch_size=BATCH)
    valid_auc = auc(valid["label"], scores.reshape(-1))
    write_result(
        options.result,
        train_rows=len(labels),
        train_seconds=train_seconds,
        train_cpu_seconds=train_cpu_seconds,
        valid_rows=len(scores),
        valid_seconds=time.perf_counter() - begun,
        valid_auc=valid_auc,
    )


if __name__ == "__main__":
    main()
