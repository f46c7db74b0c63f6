# The command line. Without a GPU, let a pip.conf of yours name the index of torch's wheels for CPUs (see pytorch.org):
#   docker build -t edgeprune --secret id=pip,src=pip.conf .
#   docker run --rm -v "$PWD:/work" edgeprune check runs/mine --budget budget.toml
FROM python:3.12-slim
COPY . /src
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir /src --constraint /src/constraints.txt \
    && rm -rf /src
RUN useradd --create-home edgeprune
USER edgeprune
WORKDIR /work
ENTRYPOINT ["edgeprune"]
CMD ["--help"]
