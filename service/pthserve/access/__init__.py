"""Access control and the request log, shared by HTTP and gRPC."""
