# mmdet_ddetr with its command line, for CPUs:   docker build -t mmdet_ddetr .
# for NVIDIA GPUs:                               docker build -t mmdet_ddetr:cuda --build-arg DEVICE=cuda .
# Start:                                         docker run --rm -v "$PWD":/work mmdet_ddetr train CONFIG
# DEVICE=cuda takes PyTorch's default build, and compiles the CUDA kernels with nvcc of CUDA_IMAGE; its CUDA has to be one
# that the host's driver knows. The running container needs `--gpus all`, but no CUDA: PyTorch brings it.
ARG DEVICE=cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_RUN_IMAGE=ubuntu:24.04

FROM ${PYTHON_IMAGE} AS builder-cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu FORCE_CUDA=0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

FROM ${CUDA_IMAGE} AS builder-cuda
ENV TORCH_INDEX= FORCE_CUDA=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM builder-${DEVICE} AS builder
ARG TORCH_VERSION=2.13.0
ARG TORCH_CUDA_ARCH_LIST=
WORKDIR /source
COPY requirements/lock.txt requirements/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint requirements/lock.txt setuptools \
    && /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${TORCH_VERSION}" \
    && grep -vE '^(torch|transformers|tokenizers|pytest|ruff|clang-format)' requirements/lock.txt > requirements/image.txt \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --requirement requirements/image.txt
COPY . .
RUN MMDET_DDETR_EXT=1 /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE} AS image-cpu
FROM ${CUDA_RUN_IMAGE} AS image-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM image-${DEVICE}
COPY --from=builder /opt/venv /opt/venv
RUN useradd --create-home --uid 10001 user && install --directory --owner=user /work
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive
USER 10001
WORKDIR /work
RUN python -c 'import mmdet_ddetr.ops as ops; assert ops.has_compiled_kernel("ms_deform_attn", "cpu")'
ENTRYPOINT ["python", "-m", "mmdet_ddetr"]
CMD ["--help"]
