# sandboxd as a container: the service as uid 10001, with newuidmap to map subordinate ids into sandboxes.
#   docker build --tag sandboxd --build-arg COMMIT=$(git rev-parse HEAD) .
# It holds no secret, and its first process is the service itself.

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libcap-dev python3 python3-dev python3-venv
RUN python3 -m venv /opt/sandboxd
# The lock file alone, so that a change of the code does not install the dependencies again.
COPY requirements.lock /build/
RUN /opt/sandboxd/bin/pip install --no-cache-dir --require-hashes --requirement /build/requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY sandboxd /build/sandboxd
COPY migrations /build/migrations
ARG COMMIT=unknown
RUN echo "$COMMIT" >/build/sandboxd/COMMIT
RUN /opt/sandboxd/bin/pip install --no-cache-dir --no-deps /build \
    && /opt/sandboxd/bin/pip uninstall --yes pip setuptools

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcap2 python3 uidmap \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 sandboxd \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/sandboxd --create-home --shell /usr/sbin/nologin sandboxd \
    # All ids of a pod's user namespace (0-65535) above the service's own: never its own, never the pod's root.
    && echo sandboxd:10002:55534 | tee /etc/subuid >/etc/subgid
COPY --from=build /opt/sandboxd /opt/sandboxd
ENV PATH=/opt/sandboxd/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    SANDBOXD_STORE_DATA_DIR=/var/lib/sandboxd
USER 10001:10001
WORKDIR /var/lib/sandboxd
VOLUME /var/lib/sandboxd
EXPOSE 8080 9464
ENTRYPOINT ["sandboxd"]
CMD ["serve", "--listen", "0.0.0.0:8080", "--metrics-listen", "0.0.0.0:9464"]
