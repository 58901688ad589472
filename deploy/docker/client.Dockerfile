# A partner's daemon, with torch and without pluralllm-server and pluralllm-research. docs/operate.md, "Containers", has the commands.
# The base image has a digest and every package has a hash; a build without them stops.
# For a GPU give the CUDA build: --build-arg LOCK=client-cuda
ARG PYTHON_DIGEST
# Another base with Python 3.11, named with its own digest, where the registry of this one cannot be reached: `make containers`
ARG BASE=python:3.11-slim-bookworm@${PYTHON_DIGEST}
FROM ${BASE} AS build
ARG LOCK=client-cpu
# Another index of torch without CUDA than the one in deploy/locks/torch-index
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# pip's settings of the building machine, such as another index, come as a secret: --secret id=pip,src=pip.conf. No image holds them.
COPY deploy/locks ./deploy/locks
RUN --mount=type=secret,id=pip,target=/etc/pip.conf python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r deploy/locks/build.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf python -m venv /opt/pluralllm && /opt/pluralllm/bin/pip install --require-hashes --extra-index-url "${TORCH_INDEX:-$(cat deploy/locks/torch-index)}" -r "deploy/locks/$LOCK.txt"
COPY common ./common
COPY client ./client
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels ./common ./client
RUN /opt/pluralllm/bin/pip install --no-index --no-deps --find-links wheels pluralllm-common pluralllm-client
RUN /opt/build/bin/cyclonedx-py environment --pyproject client/pyproject.toml -o /opt/pluralllm/sbom.cdx.json /opt/pluralllm/bin/python

FROM ${BASE}
RUN useradd --system --uid 10001 --home-dir /var/lib/pluralllm --create-home pluralllm
COPY --from=build /opt/pluralllm /opt/pluralllm
ENV PATH=/opt/pluralllm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PLURALLLM_CLIENT_STATE_DIR=/var/lib/pluralllm \
    HF_HOME=/var/lib/pluralllm/hub
USER 10001:10001
WORKDIR /var/lib/pluralllm
VOLUME /var/lib/pluralllm
EXPOSE 9465
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["pluralllm-client", "healthy"]
ENTRYPOINT ["pluralllm-client"]
CMD ["run"]
