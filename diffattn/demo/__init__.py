"""The Gradio demo: dense and sparse side by side, from one seed."""

try:
    import gradio as _  # noqa: F401
except ImportError as error:
    raise ImportError('the demo needs gradio: pip install "diffattn[demo]"') from error

from .launch import launch
from .limits import Limits
from .models import Models
from .request import Request
from .ui import build_demo
from .worker import Worker

__all__ = ["Limits", "Models", "Request", "Worker", "build_demo", "launch"]
