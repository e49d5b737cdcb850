"""Messages of the gRPC service by which pickers talk; made by protos/generate.sh."""
