"""The page of `lightning-vfs demo` in Gradio: what is on it, and which function of the studio each part calls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from lightning_vfs.commands.demo_studio import (
    MOST_IMAGES,
    MOST_PICTURES,
    MOST_STEPS,
    Order,
    Studio,
    command_of,
    in_a_sentence,
    pictures,
    result_of,
    side_by_side,
)

CSS = "img {image-rendering: pixelated} #support .grid-wrap, #other .grid-wrap, #made .grid-wrap {padding-top: 2rem}"
TITLE = """# lightning_vfs
Drop, draw or choose a few pictures of one class: the model makes new ones."""


def orders(model: str, support: Any, shots: float, images: float, steps: float, guidance: float, sampler: str,
           seed: float) -> Order:  # fmt: skip
    """The order that the page's controls make; a gallery gives pairs of file and caption."""
    files = tuple(item[0] for item in support or ())
    return Order(model, files, int(shots), int(images), int(steps), float(guidance), sampler, int(seed or 0))


def generate(studio: Studio, *controls: Any) -> Iterator[tuple[Any, ...]]:
    """What is shown of a generation: a picture of every step, then the images, what is done, command, and download."""
    try:
        order, frame = orders(*controls), None
        for frame in studio.frames(order):
            if frame.done < frame.steps:
                shown = gr.Image(side_by_side(frame.images), visible=True), gr.Gallery(visible=False)
                yield *shown, f"Step {frame.done} of {frame.steps}", command_of(order, frame), gr.skip()
        assert frame is not None
        shown = gr.Image(visible=False), gr.Gallery(pictures(frame.images), visible=True)
        file = gr.DownloadButton(value=str(studio.download(order, frame)), interactive=True)
        yield *shown, result_of(order, frame), command_of(order, frame), file
    except Exception as error:
        yield gr.skip(), gr.skip(), told(error), gr.skip(), gr.skip()


def compare(studio: Studio, other: Any, *controls: Any) -> tuple[Any, str]:
    """A picture beside copies and other supports, and what it says."""
    try:
        return studio.compare(orders(*controls), [item[0] for item in other or ()])
    except Exception as error:
        return gr.skip(), told(error)


def told(error: Exception) -> str:
    """The sentence that the page says of an error, once shown on top; Gradio's own errors would cover the page."""
    sentence = in_a_sentence(error)
    gr.Warning(sentence, duration=None)
    return sentence


def add_drawing(drawing: dict[str, Any] | None, support: Any) -> tuple[Any, Any]:
    """The support with what was drawn, and an empty sheet."""
    sheet = (drawing or {}).get("composite")
    if sheet is None or sheet.convert("L").getextrema() == (255, 255):
        gr.Warning("Draw something first.")
        return gr.skip(), gr.skip()
    return [*(support or ()), (sheet.convert("RGB"), None)], None


def build(studio: Studio) -> gr.Blocks:
    """The page."""
    examples = studio.examples()
    with gr.Blocks(title="lightning_vfs", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=2):
                support = _gallery("Pictures of one class", "support")
                if examples:
                    with gr.Row():
                        for name, files in examples.items():
                            button = gr.Button(name, size="sm")
                            button.click(partial(_files, files), None, support, api_name=False, queue=False)
                with gr.Accordion("Draw", open=False):
                    sheet = gr.Sketchpad(
                        label="Draw a picture", type="pil", elem_id="sheet", canvas_size=(256, 256), fixed_canvas=True,
                        layers=False, brush=gr.Brush(default_size=16, colors=["#000000"], color_mode="fixed"),
                    )  # fmt: skip
                    draw = gr.Button("Add the drawing", size="sm", elem_id="add-drawing")
                model = gr.Dropdown(
                    studio.names, value=studio.names[0], label="Model", allow_custom_value=studio.any_model,
                    elem_id="model", info="Or the name of a folder, a checkpoint or a hub id." if studio.any_model
                    else None,
                )  # fmt: skip
                shots = gr.Slider(1, MOST_PICTURES, 5, step=1, label="Shots: pictures that are used")
                images = gr.Slider(1, MOST_IMAGES, 8, step=1, label="Images")
                steps = gr.Slider(1, MOST_STEPS, 50, step=1, label="Steps", elem_id="steps")
                guidance = gr.Slider(0, 5, 1, step=0.1, label="Guidance: 1 is none")
                sampler = gr.Dropdown(["ddim", "ddpm", "dpmpp_2m"], value="ddim", label="Sampler")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            with gr.Column(scale=3):
                start = gr.Button("Generate", variant="primary", elem_id="generate")
                said = gr.Markdown("Pictures of one class make new ones.", elem_id="said")
                made = gr.Gallery(
                    label="Generated", columns=4, format="png", interactive=False, elem_id="made", object_fit="contain"
                )
                preview = gr.Image(
                    label="Step by step", format="png", interactive=False, visible=False, elem_id="preview"
                )
                command = gr.Code(
                    label="The command that makes them again, beside the downloaded folder `support`", language="shell",
                    elem_id="command", interactive=False, wrap_lines=True,
                )  # fmt: skip
                download = gr.DownloadButton("Download PNGs and pictures", interactive=False, elem_id="download")
                with gr.Accordion("Compare with copies and other pictures", open=False):
                    other = _gallery("Other pictures, for comparison", "other")
                    comparing = gr.Button("Compare", elem_id="compare")
                    comparison = gr.Image(label="Comparison", format="png", interactive=False, elem_id="comparison")
                    result = gr.Markdown(elem_id="result")
        controls = [model, support, shots, images, steps, guidance, sampler, seed]
        shown = [preview, made, said, command, download]
        start.click(partial(generate, studio), controls, shown, api_name="generate", concurrency_id="model")
        comparing.click(
            partial(compare, studio), [other, *controls], [comparison, result], api_name="compare",
            concurrency_id="model",
        )  # fmt: skip
        draw.click(add_drawing, [sheet, support], [support, sheet], api_name=False)
    return page


def _gallery(label: str, name: str) -> gr.Gallery:
    return gr.Gallery(
        label=label, type="filepath", file_types=["image"], columns=5, height=180, interactive=True, elem_id=name,
        object_fit="contain", sources=["upload"], format="png",
    )  # fmt: skip


def _files(files: list[Path]) -> list[str]:
    return [str(file) for file in files]


def launch(page: gr.Blocks, **options: Any) -> str:
    """Serve the page from another thread, until `page.close()`; see `Blocks.launch` for the options.

    Returns:
        Its address.
    """
    page.queue(max_size=64, default_concurrency_limit=1)
    _, address, _ = page.launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), css=CSS, share=False,
        allowed_paths=[], max_file_size="10mb", ssr_mode=False, show_error=True, footer_links=[], quiet=True,
        prevent_thread_lock=True, **options,
    )  # fmt: skip
    return str(address)
