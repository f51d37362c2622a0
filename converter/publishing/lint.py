"""A card checked before anything is sent, offline: the Hub's own client reads it, and the Hub's rules are applied."""

from __future__ import annotations

from converter.hub_rules import front_matter_problems
from converter.publishing.leaks import leaks


def lint_card(card: str, *, token: str | None = None) -> list[str]:
    """What the Hub would refuse of a README.md, and what must not be in one; one line each, none when all is well."""
    from huggingface_hub import ModelCard, ModelCardData
    from yaml import YAMLError

    try:
        data = ModelCard(card).data
    except (ValueError, TypeError, YAMLError) as error:
        return [f"the front matter is not valid YAML ({type(error).__name__}: {str(error).splitlines()[0]})"]
    fields = {name: value for name, value in data.to_dict().items() if value is not None}
    problems = front_matter_problems(fields)
    if not fields:
        problems.append("there is no front matter")
    # What the Hub's client makes of it must be what was meant.
    if not problems and ModelCardData(**fields).to_dict() != data.to_dict():
        problems.append("the front matter does not survive huggingface_hub's ModelCardData")
    return problems + leaks(card, token=token)
