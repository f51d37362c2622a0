"""Every architecture that is registered, through every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxbert.models.architecture import architecture, supported

pytest.importorskip("torch", reason="the reference is transformers on PyTorch")


@pytest.mark.parametrize("model_type", supported())
def test_every_command_knows_it(model_type: str, tmp_path: Path) -> None:
    from tests.support.journey import through_every_command

    through_every_command(tmp_path, architecture(model_type).encoder_class)
