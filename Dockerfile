# The command line with torch for CPUs:
#   docker build -t edgeprune .
#   docker run --rm -v "$PWD:/work" edgeprune check runs/mine --budget budget.toml
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision --constraint /src/constraints.txt \
    && pip install --no-cache-dir /src --constraint /src/constraints.txt \
    && rm -rf /src
RUN useradd --create-home edgeprune
USER edgeprune
WORKDIR /work
ENTRYPOINT ["edgeprune"]
CMD ["--help"]
