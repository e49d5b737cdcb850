"""What engines tell of their KV caches (vLLM `--kv-events-config`): it corrects our record of where prefixes are.

decode(payload)                 a batch of events from msgpack
KvStream(models).take(...)      sequence numbers and blocks of one engine → corrections of our index
KvEventReader(...).run()        the ZeroMQ shell: a subscription for each endpoint that publishes
"""
