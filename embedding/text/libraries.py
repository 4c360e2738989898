"""Quiet imports of transformers and the libraries around it: no progress bars, no advice.

Import this module before transformers, sentence_transformers or tokenizers. Errors still come through.
"""

import logging
import os
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import embedding.torchvision_ops  # noqa: E402, F401  isort: skip (before transformers)
import transformers  # noqa: E402

transformers.logging.disable_progress_bar()
for _library in ("sentence_transformers", "accelerate", "datasets"):
    logging.getLogger(_library).setLevel(logging.ERROR)
    # What one library does not like about another's calls.
    warnings.filterwarnings("ignore", category=FutureWarning, module=_library)
