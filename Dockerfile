# syntax=docker/dockerfile:1
# docker build --target cpu -t pointsman .        docker build --target gpu -t pointsman:gpu .
# Everything is pinned with hashes (requirements/, written by `make lock`); the base images by tag: pin them by digest in
# your own build. k8s/image-root.sh makes the same /opt/pointsman without a container engine.
ARG PYTHON=python:3.12-slim

# With a compiler the hot path is compiled (docs/adr/0011-compiled.md).
FROM ${PYTHON} AS compiler
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

FROM compiler AS build-cpu
ENV EXTRA=cpu
WORKDIR /src
COPY . .
RUN k8s/image-root.sh /out

FROM compiler AS build-gpu
ENV EXTRA=cuda
WORKDIR /src
COPY . .
RUN k8s/image-root.sh /out

FROM ${PYTHON} AS base
LABEL org.opencontainers.image.title="pointsman" org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/pointsman/bin:$PATH
USER 65532:65532
EXPOSE 50051 50052 8080
ENTRYPOINT ["/opt/pointsman/bin/python", "-m", "cli.main"]
CMD ["serve", "/etc/pointsman/policy.yaml", "--listen=0.0.0.0:50051", "--admin=0.0.0.0:8080", "--workers=1"]

FROM base AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /out/opt/pointsman /opt/pointsman

FROM base AS cpu
COPY --from=build-cpu /out/opt/pointsman /opt/pointsman
