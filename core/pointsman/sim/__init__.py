"""Simulated llm-d pools: a model of a vLLM engine and servers around it that look like vLLM to clients and scrapers."""
