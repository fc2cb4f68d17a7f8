"""The client SDK: grpcio and protobuf only, never torch."""
