"""The page: controls on the left, dense and sparse on the right."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import gradio as gr
from gradio.utils import get_upload_folder

from . import controls, display
from .head_maps import head_at, toggled
from .request import Request
from .sessions import Sessions
from .worker import DENSE, ComparisonReady, Failed, Progress, Stopped, VideoReady, Worker

HEAD = """
# diffattn
One prompt and one seed, with dense attention and with a sparse method: how much is saved, how close the result is.
"""
READY = "Ready. Generates the dense video first, then the sparse one."


def build_demo(worker: Worker | None = None) -> gr.Blocks:
    """The demo as Gradio Blocks, not launched; [`launch`] adds the theme and the bounds of the queue.

    Args:
        worker ([`Worker`], *optional*): generates the videos; one with the embedded model if not given.

    Example:

    >>> build_demo().title
    'diffattn'
    """
    worker = worker or Worker()
    page = _Page(worker, Sessions(get_upload_folder()))  # files elsewhere would be copied
    with gr.Blocks(title="diffattn", analytics_enabled=False) as demo:
        gr.Markdown(HEAD, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                inputs = controls.controls(worker)
                with gr.Row():
                    cancel = gr.Button("Cancel", interactive=False, min_width=100, elem_id="cancel")
                    generate = gr.Button("Generate", variant="primary", min_width=100, elem_id="generate")
                controls.examples(inputs["prompt"])
            with gr.Column(scale=5, min_width=320):
                outputs = _outputs()
        page.connect(inputs, outputs, generate, cancel)
        demo.unload(page.close)
    demo.queue(max_size=worker.limits.queue)
    return demo


def _outputs() -> dict[str, gr.components.Component]:
    """The components that show results, by name."""
    video = {"interactive": False, "autoplay": True, "loop": True, "height": 320, "buttons": ["download"]}
    status = gr.HTML(display.show_message(READY), elem_id="status", padding=False)
    with gr.Row():
        dense = gr.Video(label="Dense", elem_id="dense", **video)
        sparse = gr.Video(label="Sparse", elem_id="sparse", **video)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            numbers = gr.HTML(display.show_numbers([]), elem_id="numbers", padding=False)
        with gr.Column(min_width=320), gr.Tabs():
            with gr.Tab("Attention map"):
                picture = _picture("map")
            with gr.Tab("By head", elem_id="by-head"):
                heads = _picture("head-maps")
    names = ("status", "dense", "sparse", "numbers", "picture", "head_maps")
    return dict(zip(names, (status, dense, sparse, numbers, picture, heads)))


def _picture(name: str) -> gr.Image:
    return gr.Image(
        elem_id=name,
        type="filepath",
        interactive=False,
        height=400,
        show_label=False,
        buttons=["download", "fullscreen"],
    )


class _Page:
    """The actions of the buttons; one object for all sessions."""

    def __init__(self, worker: Worker, sessions: Sessions) -> None:
        self.worker, self.sessions = worker, sessions
        self.outputs: dict[str, gr.components.Component] = {}

    def connect(self, inputs: dict, outputs: dict, generate: gr.Button, cancel: gr.Button) -> None:
        self.outputs = outputs
        values, results, buttons = list(inputs.values()), list(outputs.values()), [generate, cancel]
        hidden = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        checked = gr.on(
            [generate.click, inputs["prompt"].submit],
            self.check,
            values,
            [*buttons, outputs["status"]],
            show_progress="hidden",
            api_visibility="private",
        )
        run = checked.success(
            self.generate,
            values,
            results,
            api_name="generate",
            concurrency_limit=1,
            show_progress="hidden",
            trigger_mode="once",
        )
        for ended in (run.success, run.failure):
            ended(lambda: _buttons(busy=False), None, buttons, **hidden)
        run.success(self.refresh_heads, inputs["model"], inputs["heads"], **hidden)
        outputs["head_maps"].select(self.toggle_head, inputs["heads"], inputs["heads"], **hidden)
        cancel.click(self.cancel, None, [*buttons, outputs["status"]], cancels=[run], **hidden)

    def check(self, *values) -> tuple:
        """Report a wrong value before the run is queued."""
        self._request(values)
        return *_buttons(busy=True), display.waiting()

    def generate(self, request: gr.Request, *values) -> Iterator[dict]:
        asked = self._request(values)
        run = self.sessions.begin(request.session_hash or "")
        made: list[VideoReady] = []
        yield self._show(
            status=display.waiting(),
            dense=None,
            sparse=None,
            numbers=display.show_numbers([]),
            picture=None,
            head_maps=None,
        )
        try:
            for event in self.worker.run(asked, run):
                if isinstance(event, VideoReady):
                    made.append(event)
                    slot = DENSE if event.name == DENSE else "sparse"
                    yield self._show(numbers=display.show_numbers(made)) | {self.outputs[slot]: str(event.path)}
                elif isinstance(event, Progress):
                    yield self._show(status=display.show_progress(event))
                else:
                    yield self._finish(made, event)
        except Stopped as stopped:
            yield self._show(status=display.show_message(f"Stopped: {stopped}.", "stopped"))
        except Failed as failed:
            yield self._show(status=display.show_message("The run failed.", "stopped"))
            raise _error(failed) from None

    def cancel(self, request: gr.Request) -> tuple:
        self.sessions.stop(request.session_hash or "")
        return *_buttons(busy=False), display.show_message("Cancelled.", "stopped")

    def refresh_heads(self, model: str) -> gr.Dropdown:
        """List the heads of a model that had to be downloaded first."""
        return gr.skip() if self.worker.models.folder(model) else gr.Dropdown(self.worker.heads(model))

    def toggle_head(self, heads: list[str], click: gr.SelectData) -> list[str]:
        """A click on the map of a head chooses that head, or drops it."""
        return toggled(heads, head_at(*click.index))

    def close(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.sessions.close(request.session_hash or "")

    def _request(self, values: tuple) -> Request:
        try:
            return self.worker.check(Request(*values))
        except ValueError as error:
            raise _error(error) from None

    def _finish(self, made: list[VideoReady], compared: ComparisonReady) -> dict:
        # everything again: an API client receives the last event only, and the two videos start together
        dense, sparse = made
        return self._show(
            status=display.show_message(f"Done in {dense.trial.seconds + sparse.trial.seconds:.0f} s.", "done"),
            dense=str(dense.path),
            sparse=str(sparse.path),
            numbers=display.show_numbers(made, compared),
            picture=compared.picture and str(compared.picture),
            head_maps=compared.heads and str(compared.heads),
        )

    def _show(self, **values) -> dict:
        return {self.outputs[name]: value for name, value in values.items()}


def _buttons(busy: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not busy), gr.Button(interactive=busy)


def _error(error: Exception) -> gr.Error:
    return gr.Error(escape(str(error)), print_exception=False)
