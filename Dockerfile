# syntax=docker/dockerfile:1
# The Space as a container: the same files, the same versions, any model.
#
#   docker build -t mmfusion .                                                 # the model comes at run time
#   docker build -t mmfusion --build-arg MODEL=user/name --build-arg REVISION=1a2b3c4 --secret id=HF_TOKEN .   # baked in
#
# Unusual: no list of files stands here. Which files the app needs is read from its imports by `hub/space.py`, which
# writes the Space, too. And a baked model is loaded once during the build, without network, as the container will.
# docs/deployment.md has the rest.

# To build from a fixed image: --build-arg PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS files
WORKDIR /repository
COPY . .
RUN python -c "from hub.space import ROOT, files_of_app; print(*(path.relative_to(ROOT) for path in files_of_app()), sep='\n')" > files.txt \
    && mkdir /app \
    && xargs --arg-file=files.txt --delimiter='\n' cp --parents --target-directory=/app

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /packages
COPY requirements.txt deploy/packages.txt deploy/constraints.txt ./
# torch alone comes from its own index, as the build without CUDA; on PyPI it brings gigabytes of it along. Nothing else
# may come from there, so no index is added: it is named for this one package, whose own needs the next step installs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" -c requirements.txt torch
# Two steps also make two layers, and the large one changes seldom.
# hadolint ignore=DL3059
RUN pip install --no-cache-dir -r packages.txt -c requirements.txt -c constraints.txt

FROM packages AS weights
ARG MODEL=""
ARG REVISION=""
# The token is there for this one command, as a file that is in no layer; a public model needs none. Of what `hf` writes,
# some is for root's eyes only, and root does not serve.
RUN --mount=type=secret,id=HF_TOKEN \
    mkdir /weights \
    && if [ -n "${MODEL}" ]; then \
         HF_TOKEN_PATH=/run/secrets/HF_TOKEN HF_HUB_CACHE=/weights HF_HUB_DISABLE_UPDATE_CHECK=1 \
         hf download "${MODEL}" --revision "${REVISION:?give the commit of the model, --build-arg REVISION=...}"; \
       fi \
    && chmod --recursive a+rX /weights

FROM packages AS app
RUN useradd --uid 1000 --user-group --create-home user \
    && install --directory --owner=1000 --group=1000 /cache
WORKDIR /app
COPY --from=weights /weights /weights
COPY --from=files /app ./

# Without MODEL, weights are downloaded into /cache. With it they lie in the image, outside of what a volume may cover,
# and nothing is asked of the Hub any more. `${A:+b}` is b where A is given, else empty, and empty is as good as unset.
ARG MODEL=""
ARG REVISION=""
ARG BAKED=${MODEL:+/weights}
ENV MMFUSION_MODEL=${MODEL} MMFUSION_REVISION=${REVISION} HF_HUB_CACHE=${BAKED:-/cache/hub} HF_HUB_OFFLINE=${MODEL:+1}
# Only /cache and /tmp are written to, so everything else may be read-only.
ENV MMFUSION_HOST=0.0.0.0 MMFUSION_PORT=7860 \
    HF_HOME=/cache XDG_CACHE_HOME=/cache MPLCONFIGDIR=/cache/matplotlib GRADIO_TEMP_DIR=/tmp/gradio \
    HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_UPDATE_CHECK=1 GRADIO_ANALYTICS_ENABLED=False \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

USER 1000:1000
RUN --mount=type=tmpfs,target=/tmp --network=none \
    if [ -n "${MODEL}" ]; then \
      HF_HOME=/tmp/home python -c "import sys; from cli.loading import load_pipeline; load_pipeline(sys.argv[1], revision=sys.argv[2], device='cpu')" "${MODEL}" "${REVISION}"; \
    fi

EXPOSE 7860
# The slim image has no curl. `http.client` looks at no proxy settings.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 CMD ["python", "-c", "import http.client, os, sys; connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['MMFUSION_PORT']), timeout=4); connection.request('GET', '/healthz'); sys.exit(connection.getresponse().status != 200)"]
# No shell in between: SIGTERM reaches the server, which finishes what it has begun.
STOPSIGNAL SIGTERM
CMD ["python", "app.py"]
