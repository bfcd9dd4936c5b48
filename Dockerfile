# An image for `docker run` and KubeRay: this checkout's wheel, Ray and PyTorch, for a user without root's rights.
# PyTorch brings the CUDA libraries, so the same image runs on CPUs and NVIDIA GPUs. docs/clusters.md explains its use.
FROM python:3.12-slim-trixie AS base

FROM base AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY petseg petseg
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM base
# Nearly the whole size of the image is in this layer. It does not change with petseg/.
RUN pip install --no-cache-dir --root-user-action=ignore 'ray[data,default,train]==2.60.0' 'torch==2.14.1' \
    'torchvision==0.29.1' 'numpy==2.4.6' 'pillow==13.0.0' 'pyarrow==26.0.1' 'boto3==1.44.8'
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir --root-user-action=ignore /dist/*.whl
# docs/clusters.md explains the first two. The third gives a container compute capability besides nvidia-smi.
ENV RAY_USAGE_STATS_ENABLED=0 \
    RAY_idle_worker_killing_time_threshold_ms=60000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 petseg
USER 1000
WORKDIR /home/petseg
ENTRYPOINT ["petseg"]
