# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
# gateway/http/routes/client.js is a link to it.
COPY client/client.js ./client/
COPY gateway ./gateway
RUN python -m venv /opt/sse-gateway \
 && /opt/sse-gateway/bin/pip install --no-cache-dir --disable-pip-version-check '.[kafka]'

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gateway \
 && install --directory --owner gateway /var/lib/sse-gateway
COPY --from=build /opt/sse-gateway /opt/sse-gateway
# A sample to try, with an open webhook: it listens on the container's loopback alone. Mount your own file here.
COPY config /etc/sse-gateway
# Only a log of sqlite:/// is written, in this folder: a read-only root file system works.
WORKDIR /var/lib/sse-gateway
VOLUME /var/lib/sse-gateway
ENV PATH=/opt/sse-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SSE_GATEWAY_CONFIG=/etc/sse-gateway/gateway.yaml \
    SSE_GATEWAY_LOG=sqlite:////var/lib/sse-gateway/var/gateway.db
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/healthz', timeout=2)"]
ENTRYPOINT ["sse-gateway"]
CMD ["run"]
