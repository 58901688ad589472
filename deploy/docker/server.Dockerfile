# The coordinator, without torch, pluralllm-client and pluralllm-research. docs/operate.md, "Containers", has the commands.
# The base image has a digest and every package has a hash; a build without them stops.
ARG PYTHON_DIGEST
# Another base with Python 3.11, named with its own digest, where the registry of this one cannot be reached: `make containers`
ARG BASE=python:3.11-slim-bookworm@${PYTHON_DIGEST}
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# pip's settings of the building machine, such as another index, come as a secret: --secret id=pip,src=pip.conf. No image holds them.
COPY deploy/locks ./deploy/locks
RUN --mount=type=secret,id=pip,target=/etc/pip.conf python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r deploy/locks/build.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf python -m venv /opt/pluralllm && /opt/pluralllm/bin/pip install --require-hashes -r deploy/locks/server.txt
COPY common ./common
COPY server ./server
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels ./common ./server
RUN /opt/pluralllm/bin/pip install --no-index --no-deps --find-links wheels pluralllm-common pluralllm-server
RUN /opt/build/bin/cyclonedx-py environment --pyproject server/pyproject.toml -o /opt/pluralllm/sbom.cdx.json /opt/pluralllm/bin/python

FROM ${BASE}
RUN useradd --system --uid 10001 --home-dir /var/lib/pluralllm --create-home pluralllm
COPY --from=build /opt/pluralllm /opt/pluralllm
ENV PATH=/opt/pluralllm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PLURALLLM_SERVER_STATE_DIR=/var/lib/pluralllm
USER 10001:10001
WORKDIR /var/lib/pluralllm
# All that is written; the rest of the file system may be read-only (docker run --read-only --tmpfs /tmp).
VOLUME /var/lib/pluralllm
EXPOSE 7443 7444 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["pluralllm-server", "healthy"]
ENTRYPOINT ["pluralllm-server"]
CMD ["serve"]
