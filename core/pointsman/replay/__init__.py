"""Replays of request traces: prompts from hash ids, an open-loop load generator, and a report of what came back."""
