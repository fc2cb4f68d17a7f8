"""The gRPC server: validation, admission, documents and their leases, metrics, lifecycle around one engine thread."""

from reformer_server.served_model import ServedModel
from reformer_server.server import Server
from reformer_server.settings import Settings, SettingsError

__all__ = ["ServedModel", "Server", "Settings", "SettingsError"]
