"""The wire contract of reformer-serve: protobuf messages and gRPC stubs, one subpackage a version."""
