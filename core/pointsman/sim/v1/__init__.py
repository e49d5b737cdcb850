"""Messages of the gRPC service; made by protos/generate.sh."""
