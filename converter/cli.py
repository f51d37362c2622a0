"""The commands `mlxbert-convert`, `mlxbert-verify`, `mlxbert-export` and `mlxbert-push`.

Every option is a keyword of the Python function that the command calls. Heavy imports are inside the commands, so
that `--help` answers at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heads.command_line import OptionGroups

# From heads, not mlxbert: importing mlxbert fails where MLX has no backend, and that error must be one line, too.
from heads.errors import last_catch, readable

if TYPE_CHECKING:
    from converter.publish.sending import PushPlan

EXIT_PARITY_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_PARTLY_COMPARED = 3
EXIT_INTERRUPTED = 130

_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)


class ConverterCommand(OptionGroups, click.Command):
    """A command that reports every error in one line with exit code 2; code 1 means that two models differ."""

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


_command = partial(
    click.command,
    cls=ConverterCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@click.version_option(package_name="mlxbert")
@_command(
    groups={
        "Input": ("base", "config", "revision", "prefix", "encoder_only", "dequantize"),
        "Output": ("out", "keep_adapter", "dtype", "layout", "overwrite"),
        "Quantization": ("quantize", "calibration", "target_size", "target_bits", "target_cosine"),
        "Proof": ("verify",),
        "Publishing": ("push_to", "yes"),
    },
    epilog="Exit codes: 0 written; 1 parity failed, nothing was written; 2 could not run; 3 with --verify: written, "
    "but a part of it was not compared (the line Parity names it). Documentation and examples: README.md",
)
@click.argument("src")
@click.option("--base", metavar="MODEL", help="The model that SRC, a LoRA or DoRA adapter of PEFT, is merged into.")
@click.option("--config", type=_PATH, help="A config.json for SRC.  [default: the one beside its weights]")
@click.option("--revision", help="Branch, tag or commit, if SRC is a Hub id.  [default: its main branch]")
@click.option(
    "--prefix",
    metavar="NAME.",
    help="Beginning of the encoder's tensor names, if SRC has several encoders.  [default: inferred]",
)
@click.option("--encoder-only", is_flag=True, help="Leave out every head, known or unknown.")
@click.option("--dequantize", is_flag=True, help="Unpack SRC, a quantized MLX checkpoint.")
@click.option("-o", "--out", type=_PATH, help="Directory to write.  [default: mlx_models/NAME-RECIPE]")
@click.option("--keep-adapter", is_flag=True, help="Do not merge SRC into --base: a small file that needs the base.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Dtype of the weights; with --quantize, of the scales and the unpacked tensors.  "
    "[default: the source's; with --quantize: float16]",
)
@click.option(
    "--layout",
    type=click.Choice(["encoder", "full"]),
    default="encoder",
    show_default=True,
    help="Place of the head: a separate file (encoder), or model.safetensors (full), which rerankers in mlx-vlm and "
    "Swift need.",
)
@click.option("--overwrite", is_flag=True, help="Replace a converted model in the directory.")
@click.option(
    "--quantize",
    metavar="RECIPE",
    help="2bit to 6bit, 8bit, mxfp4, mxfp8, nvfp4, mixed, or auto with one --target-….  [default: no quantization]",
)
@click.option(
    "--calibration",
    metavar="FILE",
    help='Text file for calibration, one text a line; or "built-in", or "none".  '
    "[default: built-in for mixed and auto, else none]",
)
@click.option("--target-size", metavar="SIZE", help="For auto: largest size of all weight files, such as 14MB.")
@click.option("--target-bits", type=float, help="For auto: largest number of bits per weight, scales included.")
@click.option("--target-cosine", type=float, help="For auto: lowest mean cosine with float32, on held-out text.")
@click.option("--verify/--no-verify", default=None, help="Compare with PyTorch.  [default: if torch is installed]")
@click.option("--push-to", metavar="OWNER/NAME", help="Publish on the Hub after verification, in this repository.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
def convert(src: str, push_to: str | None, yes: bool, keep_adapter: bool, **options: Any) -> None:
    """Convert SRC, a PyTorch or Hugging Face BERT checkpoint, to MLX, and prove that it is the same model.

    SRC is a Hub id, a directory, or one file (.safetensors, .bin, .pt, .pth, .ckpt, .npz). With --base it is an
    adapter in PEFT's format.

    \b
    Examples:
      mlxbert-convert bert-base-uncased
      mlxbert-convert sentence-transformers/all-MiniLM-L6-v2 -o mlx_models/minilm --dtype float16
      mlxbert-convert checkpoints/epoch=3.ckpt --config config.json -o mlx_models/mine
      mlxbert-convert mlx_models/minilm --quantize auto --target-size 14MB -o mlx_models/minilm-14MB
      mlxbert-convert my_lora --base mlx_models/bert-base-uncased -o mlx_models/my_lora
    """
    if keep_adapter:
        _keep(src, push_to=push_to, **options)
        return
    if push_to is not None:
        from converter.publish.push import require_pushable

        require_pushable(push_to, verify=options["verify"])  # check before the work
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
        raise SystemExit(EXIT_PARTLY_COMPARED)  # --verify asks for a proof of the whole


def _keep(src: str, base: str | None, out: Path | None, revision: str | None, overwrite: bool, **others: Any) -> None:
    from mlxbert.errors import MLXBertError

    others["layout"] = others["layout"] != "encoder"  # the default
    given = [name.replace("_", "-") for name, value in others.items() if value not in (None, False)]
    if base is None:
        raise MLXBertError("--keep-adapter keeps an adapter beside its base; fix: --base with the converted base")
    if given:
        raise MLXBertError(f"--keep-adapter changes no weights; fix: leave out --{given[0]}, or --keep-adapter")
    from converter.peft.keep import keep_adapter as run
    from mlxbert.terminal import show

    path = run(src, base, out, revision=revision, overwrite=overwrite)
    show(f"Wrote {path}: an adapter that needs {base}", f"Next: mlxbert.load({str(path)!r})")


@click.version_option(package_name="mlxbert")
@_command(
    groups={
        "Input": ("reference", "revision", "config", "prefix"),
        "Proof": ("seed",),
        "Output": ("junit", "html"),
    },
    epilog="Exit codes: 0 the same model, and every part of it was compared; 1 parity failed; 2 could not run; 3 the "
    "compared parts agree, but a part of the model was not compared (the last line names it).",
)
@click.argument("converted", type=_PATH)
@click.option(
    "--reference",
    help="Original of CONVERTED: a Hub id, a directory, or one file.  [default: the Hub id in its config.json; for a "
    "trained model its own export to PyTorch]",
)
@click.option(
    "--revision",
    help="Branch, tag or commit, if the reference is a Hub id.  [default: the commit that was converted, else its "
    "main branch]",
)
@click.option("--config", type=_PATH, help="A config.json for the reference.  [default: the one beside its weights]")
@click.option(
    "--prefix",
    metavar="NAME.",
    help="Beginning of the encoder's tensor names, if the reference has several encoders.  "
    "[default: as it was converted]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random probes.")
@click.option("--junit", type=_FILE, help="Write a JUnit XML file, for CI.")
@click.option("--html", type=_FILE, help="Write a self-contained page with plots.")
def verify(converted: Path, reference: str | None, junit: Path | None, html: Path | None, **options: Any) -> None:
    """Compare CONVERTED, a converted directory, with the PyTorch model that it was made from.

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
    codes = set()
    for model in models:
        if len(models) > 1:
            show(f"{model}:")
        with progress_bars() as progress:
            report = run(model, reference, **options, progress=progress)
        try:  # before the table: a reader such as `head` may close the pipe, but the reports must still be written
            written = write_reports(report, model, junit=junit, html=html)
        finally:
            show_parity(report)
        show("\n".join(written))
        codes.add(0 if report.verified else EXIT_PARTLY_COMPARED if report.passed else EXIT_PARITY_FAILED)
    if code := EXIT_PARITY_FAILED if EXIT_PARITY_FAILED in codes else max(codes, default=0):
        raise SystemExit(code)


@click.version_option(package_name="mlxbert")
@_command(groups={"Input": ("base",), "Output": ("out", "peft", "overwrite")})
@click.argument("converted", type=_PATH)
@click.option("--base", metavar="MODEL", help="The base of CONVERTED's adapters.  [default: where it was in training]")
@click.option("-o", "--out", type=_PATH, required=True, help="Directory to write.")
@click.option("--peft", is_flag=True, help="Write the adapters of CONVERTED alone, in PEFT's format.")
@click.option("--overwrite", is_flag=True, help="Replace an exported model in the directory.")
def export(converted: Path, peft: bool, **options: Any) -> None:
    """Export CONVERTED to PyTorch, for places without MLX such as a Kaggle notebook.

    CONVERTED is a run of `mlxbert train`, one trained model of it, or a directory that mlxbert-convert wrote. A
    checkpoint becomes the Hugging Face directory that it came from. A trained model becomes a classifier class of
    transformers if that computes the same, else its encoder and the tensors of its head; inference.py beside it
    predicts with only torch and transformers.

    \b
    Examples:
      mlxbert-export runs/tweets -o kaggle/tweets
      mlxbert-export runs/tweets/members/seed0-fold0 -o hf_models/tweets
      mlxbert-export mlx_models/bert-base-uncased -o hf_models/bert-base-uncased
      mlxbert-export runs/lora/members/seed0-fold0 --peft -o peft/tweets
    """
    from mlxbert.terminal import show

    if peft:
        from converter.peft.export import export_adapter as run
    else:
        from converter.export.run import export_directory as run
    exported = run(converted, **options)
    show(f"Exported to {exported.path}: {exported.what}", *(f"Next: {line}" for line in exported.use))


@click.version_option(package_name="mlxbert")
@_command(
    groups={
        "Publishing": ("to", "private", "pr", "revision", "message", "dry_run", "yes"),
        "Proof": ("allow_unverified",),
    },
)
@click.argument("converted", type=_PATH)
@click.option(
    "--to", metavar="OWNER/NAME", help="Repository.  [default: mlx-community/NAME-PRECISION, such as …-4bit or …-bf16]"
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--pr", is_flag=True, help="Propose the files in a pull request.")
@click.option("--revision", help="Branch to write to; it is created if it does not exist.  [default: the main branch]")
@click.option("--message", help="Message of the commit.  [default: one that names the model]")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and the model card; do not use the network.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
@click.option("--allow-unverified", is_flag=True, help="Publish without a passed comparison; the model card says so.")
def push(converted: Path, to: str | None, yes: bool, **options: Any) -> None:
    """Publish CONVERTED, a converted and verified directory, on the Hugging Face Hub, with its evidence.

    The token is the one of `hf auth login`, or HF_TOKEN.

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
