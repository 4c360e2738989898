"""Makes `import torchvision` work beside a CPU build of torch.

torchvision's wheel is a CUDA build: its C++ extension does not load there, and the import fails on the
missing operator torchvision::nms. Declaring the two detection operators (which nothing here calls) is
enough for models and transforms. Import this module before torchvision, transformers or
sentence_transformers.
"""

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing() -> "torch.library.Library | None":
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        return library
    return None


# Kept alive as long as the process: the declaration ends with the object.
LIBRARY = _declare_missing()
