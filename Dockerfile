# Images of Tessera; every one runs as a user without rights, from /tessera.
#
#   docker build --target serve     -t tessera-serve .       serving on CPUs: no torchrec, no CUDA
#   docker build --target train-cpu -t tessera-train:cpu .   every job, on CPUs
#   docker build --target train-gpu -t tessera-train:gpu .   every job, on NVIDIA GPUs
#
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/workspaces:/workspaces" tessera-serve \
#     bundle=/workspaces/demo/bundles/current
#   docker run --rm -v "$PWD/workspaces:/workspaces" tessera-train:cpu \
#     python launch/prepare.py data=demo workspace=/workspaces/demo
#
# TORCH_INDEX is the package index with CPU builds of torch, as in the Makefile.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
ENV HF_HUB_OFFLINE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/tessera \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
RUN groupadd --gid 10001 tessera \
    && useradd --uid 10001 --gid tessera --create-home tessera \
    && mkdir /workspaces && chown tessera:tessera /workspaces
WORKDIR /tessera

FROM base AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements-cpu.txt requirements-serve.txt ./
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" \
    -c requirements-cpu.txt torch torchvision -r requirements-serve.txt

FROM packages-cpu AS serve
COPY configs configs
COPY embedding embedding
COPY launch launch
COPY recsys recsys
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# The server itself is process 1: SIGTERM reaches it, and it finishes what it has begun.
ENTRYPOINT ["python", "launch/serve.py", "host=0.0.0.0", "port=8000"]
CMD ["bundle=/workspaces/demo/bundles/current"]

FROM packages-cpu AS train-cpu
COPY requirements-base.txt ./
# --no-deps: torchrec asks for fbgemm-gpu, which needs an NVIDIA driver (requirements-cpu.txt).
RUN pip install --no-cache-dir --no-deps --extra-index-url "${TORCH_INDEX}" -r requirements-cpu.txt \
    && pip install --no-cache-dir -c requirements-cpu.txt -r requirements-base.txt
COPY configs configs
COPY embedding embedding
COPY launch launch
COPY recsys recsys
USER 10001:10001
CMD ["python", "launch/doctor.py"]

FROM base AS train-gpu
# torch's wheels bring CUDA; the NVIDIA Container Toolkit brings the driver.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements.txt requirements-base.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY configs configs
COPY embedding embedding
COPY launch launch
COPY recsys recsys
USER 10001:10001
CMD ["python", "launch/doctor.py"]
