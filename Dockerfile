# The package with its extras, as an image whose command is clip3dreid; docs/install.md says how it is run. It needs
# BuildKit, docker's builder since version 23. smplx is in none of it: its licence is non-commercial research.
#
#   docker build -t clip3dreid .                                    torch for CPUs
#   docker build -t clip3dreid:cuda --build-arg TORCH_INDEX= .      the package index's torch, on Linux one for CUDA
#   docker build --build-arg TORCH_INDEX=URL .                      the --index-url that pytorch.org's selector prints
#   docker build --build-arg EXTRAS=serve,onnx .                    other extras than all; none: EXTRAS=
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY constraints.txt ./
RUN pip install --constraint constraints.txt hatchling
# First a wheel without code or text, which asks for the same packages: as long as it is the same, so is their layer below.
COPY pyproject.toml LICENSE ./
RUN mkdir -p src/clip3dreid conf && touch README.md src/clip3dreid/__init__.py && hatchling build -t wheel -d /needs
COPY README.md ./
COPY src src
COPY conf conf
RUN hatchling build -t wheel -d /wheel

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="clip3dreid" org.opencontainers.image.licenses="MIT"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=all
# What changes least comes first. torch by its exact version, as in the Makefile: a range lets the resolver take another.
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        "torch==$(sed -n 's/^torch==//p' /constraints.txt)"
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    --mount=type=bind,from=wheel,source=/needs,target=/needs \
    pip install --constraint /constraints.txt "$(echo /needs/*.whl)${EXTRAS:+[$EXTRAS]}"
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-deps --force-reinstall /wheel/*.whl

# Anybody may write here, so that --user takes the owner of mounted folders. A user without a name has no home either.
RUN useradd --no-create-home --home-dir /home/reid --uid 1000 reid \
    && install -d -m 1777 /home/reid /cache /data /work
ENV HOME=/home/reid USER=reid XDG_CACHE_HOME=/cache
USER 1000
WORKDIR /work
# Runs, worlds and galleries; data sets; what was downloaded.
VOLUME ["/work", "/data", "/cache"]
EXPOSE 7860
ENTRYPOINT ["clip3dreid"]
