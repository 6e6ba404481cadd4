"""The page of one model: what stands where."""

import gradio as gr

from mri_ddpm.demo import markup
from mri_ddpm.demo.comparing import Comparison, add_compare
from mri_ddpm.demo.editing import add_edit
from mri_ddpm.demo.model import Model
from mri_ddpm.demo.parts import Parts
from mri_ddpm.demo.sessions import Sessions
from mri_ddpm.demo.settings import Settings
from mri_ddpm.demo.tabs import add_sample, add_watch

SECONDS_KEPT = 300  # of files that Gradio keeps: what a canvas shows


def make_page(
    model: Model, where: dict[str, str | None] | None = None, show_scans: bool = False
) -> gr.Blocks:
    """The page of a model; what that has not, such as classes, the page has not either.

    Args:
        model: which.
        where: its training scans are, as of ``mri-ddpm evaluate``.
        show_scans: whether a visitor may see them.
    """
    sessions, comparison = Sessions(), Comparison(model, where or {}, show_scans)
    keep = (SECONDS_KEPT // 10, SECONDS_KEPT)
    with gr.Blocks(title="Synthetic brain MRI", analytics_enabled=False, delete_cache=keep) as page:
        gr.HTML(markup.BANNER)
        gr.HTML(markup.title(model))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                parts = Parts(model, sessions, Settings(model, sessions))
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Sample"):
                    add_sample(parts)
                with gr.Tab("Watch"):
                    add_watch(parts)
                if model.draws_one_channel:
                    with gr.Tab("Edit"):
                        add_edit(parts)
                if comparison.has_scans or comparison.report:
                    with gr.Tab("Compare"):
                        add_compare(parts, comparison)
        page.unload(sessions.forget)
    page.queue(max_size=20, api_open=False)
    return page
