"""The commands `mlxbert-convert`, `mlxbert-verify` and `mlxbert-export`.

Every flag is a keyword of the Python function that the command calls. Heavy imports stand inside the commands, so that
`--help` answers at once. Exit codes: 0 done, 1 parity failed, 2 could not run.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click

EXIT_PARITY_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Command):
    """A command whose mistakes of the caller's cost one clear message and exit code 2, never a traceback.

    A mistake of ours shows its traceback, and exits with 2 too: 1 would say that two models differ.
    """

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.UsageError as error:
            click.echo(f"{info_name}: error: {error.format_message()}; fix: see {info_name} --help", err=True)
            raise click.exceptions.Exit(EXIT_COULD_NOT_RUN) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(f"\n{ctx.command_path}: interrupted; nothing half-written was left", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:
            if _is_ours(error):
                click.echo(f"{ctx.command_path}: error: {error}", err=True)
            else:
                traceback.print_exc()
                click.echo(f"{ctx.command_path}: could not run: the lines above show a bug; fix: report it", err=True)
            ctx.exit(EXIT_COULD_NOT_RUN)


def _is_ours(error: Exception) -> bool:
    """An MLXBertError. Not imported for that: importing mlxbert is what raises one where MLX has no backend."""
    errors = sys.modules.get("mlxbert.errors")
    return errors is not None and isinstance(error, errors.MLXBertError)


@click.command(cls=OneLineErrors, context_settings=CONTEXT, epilog="Docs and examples: README.md")
@click.argument("src")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Directory to write.  [default: mlx_models/NAME]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: the source's own]")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--config", type=click.Path(path_type=Path), help="A config.json, where SRC has none beside it.")
@click.option("--verify/--no-verify", default=None, help="Compare with PyTorch.  [default: where torch is installed]")
@click.option("--overwrite", is_flag=True, help="Replace a converted model that is there already.")
@click.option(
    "--quantize", metavar="RECIPE", help="2bit to 8bit, mxfp4, mxfp8, nvfp4, mixed, or auto with one --target-…."
)
@click.option(
    "--calibration",
    metavar="FILE",
    help='Texts, one a line, that choose the codes; or "built-in", or "none".  [default: built-in for mixed and auto]',
)
@click.option("--target-size", metavar="SIZE", help="For auto: bytes of all weight files at most, as in 14MB.")
@click.option("--target-bits", type=float, help="For auto: bits that a weight takes at most, scales included.")
@click.option("--target-cosine", type=float, help="For auto: mean cosine with float32 at least, on text held back.")
@click.option("--dequantize", is_flag=True, help="SRC is a quantized MLX checkpoint: write its numbers unpacked.")
def convert(src: str, **options: Any) -> None:
    """Convert SRC, a PyTorch or Hugging Face BERT checkpoint, to MLX, and prove that it is the same model.

    SRC is a Hub id, a directory, or one file (.safetensors, .bin, .pt, .pth, .ckpt, .npz).

    \b
    Examples:
      mlxbert-convert bert-base-uncased
      mlxbert-convert sentence-transformers/all-MiniLM-L6-v2 -o mlx_models/minilm --dtype float16
      mlxbert-convert checkpoints/epoch=3.ckpt --config config.json -o mlx_models/mine
      mlxbert-convert mlx_models/minilm --quantize auto --target-size 14MB -o mlx_models/minilm-14MB
    """
    from converter.convert import ParityFailedError
    from converter.convert import convert as run
    from converter.terminal import progress_bars, show_parity, show_result

    try:
        with progress_bars() as progress:
            result = run(src, **options, progress=progress)
    except ParityFailedError as error:
        show_parity(error.report)
        click.echo(f"mlxbert-convert: {error}", err=True)
        raise SystemExit(EXIT_PARITY_FAILED) from None
    show_result(result)


@click.command(
    cls=OneLineErrors, context_settings=CONTEXT, epilog="Exit codes: 0 same model, 1 parity failed, 2 could not run."
)
@click.argument("converted", type=click.Path(path_type=Path))
@click.option("--reference", required=True, help="What it was converted from: a Hub id, a directory, or one file.")
@click.option("--revision", help="Branch, tag or commit of a reference on the Hub.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A config.json, where the reference has none beside it."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random probes.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write a JUnit XML file, for CI.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page with plots."
)
def verify(converted: Path, reference: str, junit: Path | None, html: Path | None, **options: Any) -> None:
    """Compare CONVERTED, a converted directory, with the PyTorch model it came from.

    \b
    Examples:
      mlxbert-verify mlx_models/bert-base-uncased --reference bert-base-uncased
      mlxbert-verify mlx_models/mine --reference checkpoints/mine.pt --html parity.html --junit parity.xml
    """
    from converter.terminal import progress_bars, show_parity
    from converter.verify import verify as run
    from converter.verify import write_reports
    from mlxbert.terminal import show

    with progress_bars() as progress:
        report = run(converted, reference, **options, progress=progress)
    try:  # before the table: whoever pipes that into `head` wants the reports all the same
        written = write_reports(report, converted, junit=junit, html=html)
    finally:
        show_parity(report)
    show("\n".join(written))
    if not report.passed:
        raise SystemExit(EXIT_PARITY_FAILED)


@click.command(cls=OneLineErrors, context_settings=CONTEXT)
@click.argument("converted", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace an exported model that is there already.")
def export(converted: Path, **options: Any) -> None:
    """Turn CONVERTED back into a Hugging Face PyTorch directory, its head included.

    \b
    Example:
      mlxbert-export mlx_models/bert-base-uncased -o hf_models/bert-base-uncased
    """
    from converter.export import export as run
    from mlxbert.terminal import show

    path = run(converted, **options)
    show(f"Exported to {path}", f'Next: transformers.AutoModel.from_pretrained("{path}")')
