"""``mri-ddpm demo PIPELINE``: the model in a browser, on this machine alone."""

from pathlib import Path

from mri_ddpm.commands import parser_of
from mri_ddpm.commands.flags import DEVICE, PIPELINE, add_scans, where
from mri_ddpm.demo import serve
from mri_ddpm.errors import InputError
from mri_ddpm.presets import PRESETS
from mri_ddpm.runs import RunFolder


def main(args: list[str] | None = None) -> None:
    """Read the flags and serve."""
    parser = parser_of("demo")
    parser.add_argument(
        "pipeline", nargs="?", help=f"{PIPELINE}; the quickstart's phantom model when not given"
    )
    parser.add_argument("--device", default=DEVICE)
    add_scans(parser, "to compare samples with, the scans the model was trained on")
    parser.add_argument(
        "--show_scans",
        action="store_true",
        help="also show the nearest training scans, to everybody who opens the page",
    )
    parser.add_argument("--port", type=int, help="the first free one from 7860 on when not given")
    parser.add_argument(
        "--share", action="store_true", help="also open the page to the world, through a server of Gradio's"
    )
    args = parser.parse_args(args)
    serve(
        args.pipeline or quickstart(),
        args.device,
        where=where(args),
        show_scans=args.show_scans,
        port=args.port,
        share=args.share,
    )


def quickstart() -> str:
    """The run folder of the preset ``quickstart``."""
    run = RunFolder(Path(PRESETS["quickstart"]["output_dir"]))
    if not run.has_pipeline:
        raise InputError(
            f"no model is named, and {run} holds none; train the phantoms' one by 'mri-ddpm train --preset quickstart', or "
            "name a model."
        )
    return str(run)
