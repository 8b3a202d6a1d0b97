# Three small images from one build: the relay (the last stage, so what a plain docker build makes), and the examples
# with --target producer and --target consumer. Nothing here needs BuildKit: what changes least stands first, so that a
# build after a commit finds the modules and the compiled dependencies in layers of their own.

FROM golang:1.26-bookworm AS build
WORKDIR /src

# For builds behind a module proxy: --build-arg GOPROXY=https://…
ARG GOPROXY
ARG GOFLAGS
ENV CGO_ENABLED=0

COPY go.mod go.sum ./
RUN go mod download
# The packages that take minutes to compile. .ci/run checks that the programs import each of them.
RUN go build -trimpath \
        github.com/jackc/pgx/v5/pgxpool \
        github.com/jackc/pgx/v5/stdlib \
        github.com/nats-io/nats-server/v2/server \
        github.com/nats-io/nats.go/jetstream \
        github.com/pelletier/go-toml/v2 \
        github.com/prometheus/client_golang/prometheus/collectors \
        github.com/prometheus/client_golang/prometheus/promhttp \
        github.com/spf13/cobra

# The embedded nats-server writes below /app/data. OpenShift and docker run --user choose the user, but not the group,
# which is 0: the group may do what the owner may.
RUN mkdir -p /out/app/data/nats && chmod -R g=u /out/app

COPY . .
# Compiled, not linked: only linking depends on the version.
RUN go build -trimpath ./relay/cmd/outbox-relay ./examples/producer ./examples/consumer
ARG VERSION=dev
RUN go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/ \
        ./relay/cmd/outbox-relay ./examples/producer ./examples/consumer


# What the images share: certificates for TLS, a user that is not root, and a directory that it may write to.
FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65532:0 /out/app /app
USER 65532:65532
WORKDIR /app
EXPOSE 8080
LABEL org.opencontainers.image.source="https://github.com/go-outbox/go-outbox" \
      org.opencontainers.image.documentation="https://github.com/go-outbox/go-outbox#readme"


FROM base AS producer
COPY --from=build /out/producer /producer
HEALTHCHECK --interval=2s --timeout=3s --start-period=5s --retries=5 CMD ["/producer", "healthcheck"]
ENTRYPOINT ["/producer"]
ARG VERSION=dev
ARG REVISION
LABEL org.opencontainers.image.title="outbox-producer" \
      org.opencontainers.image.description="Sample of a service with the relay of Go Outbox built in" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


FROM base AS consumer
# All addresses of the container, not its loopback, so that a published port reaches it.
ENV HEALTH_ADDR=:8080
COPY --from=build /out/consumer /consumer
HEALTHCHECK --interval=2s --timeout=3s --start-period=5s --retries=5 CMD ["/consumer", "healthcheck"]
ENTRYPOINT ["/consumer"]
ARG VERSION=dev
ARG REVISION
LABEL org.opencontainers.image.title="outbox-consumer" \
      org.opencontainers.image.description="Sample of a consumer of Go Outbox's events" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


FROM base AS relay
# Health and metrics are reachable by published port and by the container's address. The connection strings come from
# the environment.
ENV OUTBOX_HTTP_ADDR=:8080
# Found without CONFIG_PATH, as config/relay.toml.
COPY config/relay.toml /app/config/relay.toml
COPY --from=build /out/outbox-relay /outbox-relay
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/outbox-relay", "healthcheck"]
ENTRYPOINT ["/outbox-relay"]
ARG VERSION=dev
ARG REVISION
LABEL org.opencontainers.image.title="outbox-relay" \
      org.opencontainers.image.description="Moves events from a Postgres outbox to NATS JetStream, once and in order" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
