# A partner's daemon, with torch and without pluralllm-server and pluralllm-research. From the repository's root: docker build -f deploy/docker/client.Dockerfile -t pluralllm-client .
# For a GPU give the CUDA build: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
FROM python:3.11-slim-bookworm AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/pluralllm
ENV PATH=/opt/pluralllm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN pip install --index-url "$TORCH_INDEX" "$TORCH"
COPY constraints.txt ./
COPY common ./common
COPY client ./client
RUN pip install --constraint constraints.txt "./common[tracing]" "./client[train]"

FROM python:3.11-slim-bookworm
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
