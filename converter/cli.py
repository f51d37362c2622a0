"""The commands `mlxbert-convert`, `mlxbert-verify`, `mlxbert-export` and `mlxbert-push`.

Every flag is a keyword of the Python function that the command calls. Heavy imports stand inside the commands, so that
`--help` answers at once. Exit codes: 0 done, 1 parity failed, 2 could not run, 3 what was compared agrees, and a part
that the directory ships was not compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heads.errors import last_catch, readable  # not mlxbert's: importing that is what fails where MLX has no backend

if TYPE_CHECKING:
    from converter.publish.sending import PushPlan

EXIT_PARITY_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_PARTLY_COMPARED = 3
EXIT_INTERRUPTED = 130

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_version = click.version_option(package_name="mlxbert")


class OneLineErrors(click.Command):
    """A command whose errors cost one clear message and exit code 2: 1 would say that two models differ."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else info_name  # `mlxbert convert` as well
            line = f"{command}: error: {error.format_message()}; fix: see {command} --help"
            click.echo(readable(line), err=True)
            raise click.exceptions.Exit(EXIT_COULD_NOT_RUN) from error

    def invoke(self, ctx: click.Context) -> Any:
        with last_catch(ctx.command_path, (click.ClickException, click.exceptions.Exit, click.Abort)):
            return super().invoke(ctx)


@_version
@click.command(
    cls=OneLineErrors,
    context_settings=CONTEXT,
    epilog="Exit codes: 0 written; 1 parity failed, nothing was written; 2 could not run; 3 with --verify: written, "
    "and a part that it ships was not compared (the line Parity names it). Docs and examples: README.md",
)
@click.argument("src")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Directory to write.  [default: mlx_models/NAME-RECIPE]"
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="[default: the source's own; with --quantize float16, of scales and of what is not packed]",
)
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--config", type=click.Path(path_type=Path), help="A config.json, where SRC has none beside it.")
@click.option("--verify/--no-verify", default=None, help="Compare with PyTorch.  [default: where torch is installed]")
@click.option("--overwrite", is_flag=True, help="Replace a converted model that is there already.")
@click.option(
    "--quantize", metavar="RECIPE", help="2bit to 6bit, 8bit, mxfp4, mxfp8, nvfp4, mixed, or auto with one --target-…."
)
@click.option(
    "--calibration",
    metavar="FILE",
    help='Texts, one a line, that choose the codes; or "built-in", or "none".  [default: built-in for mixed and auto]',
)
@click.option("--target-size", metavar="SIZE", help="For auto: bytes of all weight files at most, as in 14MB.")
@click.option("--target-bits", type=float, help="For auto: bits that a weight takes at most, scales included.")
@click.option("--target-cosine", type=float, help="For auto: mean cosine with float32 at least, on text held back.")
@click.option(
    "--prefix", metavar="NAME.", help="Which encoder, where SRC has several: what its tensors' names begin with."
)
@click.option("--encoder-only", is_flag=True, help="Leave out every head, known or not.")
@click.option("--dequantize", is_flag=True, help="SRC is a quantized MLX checkpoint: write its numbers unpacked.")
@click.option(
    "--layout",
    type=click.Choice(["encoder", "full"]),
    default="encoder",
    show_default=True,
    help="Where the head goes: a file of its own, or full: model.safetensors, for rerankers in mlx-vlm and Swift.",
)
@click.option("--push-to", metavar="OWNER/NAME", help="Publish it there on the Hub, once it is verified.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
def convert(src: str, push_to: str | None, yes: bool, **options: Any) -> None:
    """Convert SRC, a PyTorch or Hugging Face BERT checkpoint, to MLX, and prove that it is the same model.

    SRC is a Hub id, a directory, or one file (.safetensors, .bin, .pt, .pth, .ckpt, .npz).

    \b
    Examples:
      mlxbert-convert bert-base-uncased
      mlxbert-convert sentence-transformers/all-MiniLM-L6-v2 -o mlx_models/minilm --dtype float16
      mlxbert-convert checkpoints/epoch=3.ckpt --config config.json -o mlx_models/mine
      mlxbert-convert mlx_models/minilm --quantize auto --target-size 14MB -o mlx_models/minilm-14MB
    """
    if push_to is not None:
        from converter.publish.push import require_pushable

        require_pushable(push_to, verify=options["verify"])  # before the work, not after it
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
    if push_to is not None:
        _push(result.path, push_to, yes=yes)
    elif options["verify"] and result.report is not None and not result.report.verified:
        raise SystemExit(EXIT_PARTLY_COMPARED)  # written; but a proof of the whole was asked for


@_version
@click.command(
    cls=OneLineErrors,
    context_settings=CONTEXT,
    epilog="Exit codes: 0 the same model, and all that it ships was compared; 1 parity failed; 2 could not run; 3 "
    "what was compared agrees, and a part that it ships was not compared (the last line names it).",
)
@click.argument("converted", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    help="What it was converted from: a Hub id, a directory, or one file.  [default: the Hub id that its config.json "
    "names; of a trained model its own export to PyTorch]",
)
@click.option("--revision", help="Branch, tag or commit of a reference on the Hub.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A config.json, where the reference has none beside it."
)
@click.option("--prefix", metavar="NAME.", help="Which encoder, where the reference has several.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random probes.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write a JUnit XML file, for CI.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page with plots."
)
def verify(converted: Path, reference: str | None, junit: Path | None, html: Path | None, **options: Any) -> None:
    """Compare CONVERTED with PyTorch: a converted directory with the model it came from.

    A run of `mlxbert train`, or one model of it, is compared with its own export to PyTorch.

    \b
    Examples:
      mlxbert-verify mlx_models/bert-base-uncased --reference bert-base-uncased
      mlxbert-verify mlx_models/mine --reference checkpoints/mine.pt --html parity.html --junit parity.xml
      mlxbert-verify runs/tweets/members/seed0-fold0
    """
    from converter.terminal import progress_bars, show_parity
    from converter.verify import models_in, write_reports
    from converter.verify import verify as run
    from mlxbert.terminal import show

    models = models_in(converted, reports=junit is not None or html is not None)
    code = 0
    for model in models:
        if len(models) > 1:
            show(f"{model}:")
        with progress_bars() as progress:
            report = run(model, reference, **options, progress=progress)
        try:  # before the table: whoever pipes that into `head` wants the reports all the same
            written = write_reports(report, model, junit=junit, html=html)
        finally:
            show_parity(report)
        show("\n".join(written))
        found = 0 if report.verified else EXIT_PARTLY_COMPARED if report.passed else EXIT_PARITY_FAILED
        code = EXIT_PARITY_FAILED if EXIT_PARITY_FAILED in (code, found) else max(code, found)
    if code:
        raise SystemExit(code)


@_version
@click.command(cls=OneLineErrors, context_settings=CONTEXT)
@click.argument("converted", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace an exported model that is there already.")
def export(converted: Path, **options: Any) -> None:
    """Turn CONVERTED into PyTorch, for places without MLX such as a Kaggle notebook.

    CONVERTED is a run of `mlxbert train`, one trained model of it, or what mlxbert-convert wrote. A checkpoint becomes
    the Hugging Face directory that it came from. A trained model becomes BertForSequenceClassification where that
    computes the same, else its encoder and its head's tensors; inference.py beside it predicts with torch and
    transformers alone.

    \b
    Examples:
      mlxbert-export runs/tweets -o kaggle/tweets
      mlxbert-export runs/tweets/members/seed0-fold0 -o hf_models/tweets
      mlxbert-export mlx_models/bert-base-uncased -o hf_models/bert-base-uncased
    """
    from converter.export.run import export_directory
    from mlxbert.terminal import show

    done = export_directory(converted, **options)
    show(f"Exported to {done.path}: {done.what}", *(f"Next: {line}" for line in done.use))


@_version
@click.command(cls=OneLineErrors, context_settings=CONTEXT)
@click.argument("converted", type=click.Path(path_type=Path))
@click.option("--to", metavar="OWNER/NAME", help="[default: mlx-community/NAME-PRECISION, such as …-4bit or …-bf16]")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made.")
@click.option("--pr", is_flag=True, help="Propose the files in a pull request.")
@click.option("--revision", help="Branch to write to; made where it is not there.")
@click.option("--message", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and its card; ask no network.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--allow-unverified", is_flag=True, help="Publish without a comparison that passed; the card says so.")
def push(converted: Path, to: str | None, yes: bool, **options: Any) -> None:
    """Publish CONVERTED, a converted and verified directory, on the Hugging Face Hub, with its evidence.

    The token is that of `hf auth login`, or in HF_TOKEN.

    \b
    Examples:
      mlxbert-push mlx_models/bert-base-uncased --dry-run
      mlxbert-push mlx_models/bert-base-uncased --to mlx-community/bert-base-uncased-fp32
    """
    _push(converted, to, yes=yes, **options)


def _push(converted: Path, to: str | None, *, yes: bool, **options: Any) -> None:
    from converter.publish.push import push as run
    from converter.terminal import confirm_push, show_push

    agreed = False

    def confirm(plan: PushPlan) -> bool:
        nonlocal agreed
        agreed = confirm_push(plan, converted, yes=yes)
        return agreed

    try:
        result = run(converted, to, confirm=confirm, **options)
    except KeyboardInterrupt:
        if not agreed:
            raise
        click.echo(
            "\nmlxbert-push: interrupted; the repository, or the commit, may be there already: push again, what has "
            "arrived is not sent twice",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    show_push(result, converted)
