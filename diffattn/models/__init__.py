"""Adapters: what differs between model families, one small file each."""

from . import wan
from .adapter import Adapter, adapter_for, supported_models

__all__ = ["Adapter", "adapter_for", "supported_models", "wan"]
