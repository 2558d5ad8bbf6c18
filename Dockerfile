# The server on a CPU.
#
#   docker build -t mulosd .
#   docker run --rm -p 127.0.0.1:8000:8000 -e MULOSD_API_KEY=secret mulosd
#
# What follows the name of the image are further options of `mulosd serve`. Inside it listens on port 8000 always: that is
# what the health check asks.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=2.13.0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# For the host kernels.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/mulosd
ENV PATH=/opt/mulosd/bin:$PATH
# Before the sources, so that a change of theirs does not download it again.
RUN pip install "torch==${TORCH}" --index-url https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
# The package is this folder, of the version that it states. Without its host kernels it would serve, and slowly: such an
# image is not to be built.
# hadolint ignore=DL3013
RUN pip install ".[serve]" && python -c "import mulosd._cpu"

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --create-home mulosd
COPY --from=build /opt/mulosd /opt/mulosd
ENV PATH=/opt/mulosd/bin:$PATH PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root.
USER 10001
WORKDIR /home/mulosd
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Beyond the container it answers who has a key alone; without one it refuses to start.
ENTRYPOINT ["mulosd", "serve", "--host", "0.0.0.0"]
