"""Serving the page."""

from __future__ import annotations

import gradio as gr

from .theme import CSS, theme

LOCALHOST = "127.0.0.1"


def launch(demo: gr.Blocks, host: str = LOCALHOST, port: int | None = None, share: bool = False, **options) -> tuple:
    """Serve what [`build_demo`] made, by default to this machine only.

    Args:
        demo (`gr.Blocks`): the page.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): `"0.0.0.0"` serves the network.
        port (`int`, *optional*): the first free one from 7860 on if not given.
        share (`bool`, *optional*, defaults to `False`): a public link through Gradio's servers.
        options: of `gr.Blocks.launch`.
    """
    return demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=theme(),
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=1024,  # bytes: nothing is uploaded
        ssr_mode=False,
        mcp_server=False,
        **options,
    )
