# The coordinator, without torch, pluralllm-client and pluralllm-research. From the repository's root: docker build -f deploy/docker/server.Dockerfile -t pluralllm-server .
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/pluralllm
ENV PATH=/opt/pluralllm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
COPY common ./common
COPY server ./server
RUN pip install --constraint constraints.txt "./common[tracing]" ./server

FROM python:3.11-slim-bookworm
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
