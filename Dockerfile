# The command line. Without a GPU, give the index of torch's wheels for CPUs, as pytorch.org names it:
#   docker build -t edgeprune --build-arg TORCH_INDEX=ADDRESS .
#   docker run --rm -v "$PWD:/work" edgeprune check runs/mine --budget budget.toml
FROM python:3.12-slim
COPY . /src
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision --constraint /src/constraints.txt \
    && pip install --no-cache-dir /src --constraint /src/constraints.txt \
    && rm -rf /src
RUN useradd --create-home edgeprune
USER edgeprune
WORKDIR /work
ENTRYPOINT ["edgeprune"]
CMD ["--help"]
