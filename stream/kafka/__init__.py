"""Kafka: clients, topics, schemas, transactions."""
