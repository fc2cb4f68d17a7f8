"""The gRPC service: validation, admission, metrics and lifecycle around the engine."""
