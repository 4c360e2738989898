"""Tessera's recommender: data, model, distribution, training, evaluation."""

import logging

# torchrec asks torch.fx something at import that makes it warn; nobody who runs a job can act on it.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
