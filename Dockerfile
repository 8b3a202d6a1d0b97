# Three small images from one build: the relay (the last stage, so what a plain docker build makes), and the examples
# with --target producer and --target consumer. Nothing here needs BuildKit.

FROM golang:1.26-bookworm AS build
WORKDIR /src

# For builds behind a module proxy: --build-arg GOPROXY=https://…
ARG GOPROXY
ARG GOFLAGS

# The dependencies change less often than the code: a layer of their own.
COPY go.mod go.sum ./
RUN go mod download

COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/ \
        ./relay/cmd/outbox-relay ./examples/producer ./examples/consumer \
    && mkdir -p /out/app/data/nats


# What the images share: certificates for TLS, a user that is not root, and a directory that it may write to.
FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65532:65532 /out/app /app
USER 65532:65532
WORKDIR /app


FROM base AS producer
COPY --from=build /out/producer /producer
EXPOSE 8080
HEALTHCHECK --interval=2s --timeout=2s --start-period=5s --retries=5 CMD ["/producer", "healthcheck"]
ENTRYPOINT ["/producer"]


FROM base AS consumer
COPY --from=build /out/consumer /consumer
HEALTHCHECK --interval=2s --timeout=2s --start-period=5s --retries=5 CMD ["/consumer", "healthcheck"]
ENTRYPOINT ["/consumer"]


FROM base AS relay
# Found without CONFIG_PATH, as config/relay.toml. The connection strings come from the environment.
COPY config/relay.toml /app/config/relay.toml
COPY --from=build /out/outbox-relay /outbox-relay
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/outbox-relay", "healthcheck"]
ENTRYPOINT ["/outbox-relay"]
