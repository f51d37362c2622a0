"""What the Hub's validate-yaml says of a model card: its documented rules, in the Hub's own words.

The licenses are those of the Hub's own error message (huggingface_hub issue 4218, May 2026); the other rules are
those of huggingface.co/docs/hub/model-cards. It shares no code with the project's lint, which it is there to check.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
grok2-community gemma unknown other
"""
LICENSES = _LICENSES.split()
_FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_RELATIONS = ("adapter", "merge", "quantized", "finetune")


def check_yaml(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings for a README.md."""
    found = _FRONT_MATTER.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[2])
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {str(error).splitlines()[0]}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"], []
    return [*_errors(data)], [*_warnings(data)]


def _errors(data: dict[str, Any]) -> list[str]:
    errors = []
    for value in _as_list(data.get("license")):
        if value not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}, array]')
    for value in _as_list(data.get("language")):
        if not isinstance(value, str):
            errors.append('"language" must be a string')  # `no` without quotes is YAML's false
        elif value.lower() != value:
            errors.append('"language" must only contain lowercase characters')
        elif not (re.fullmatch("[a-z]{2,3}", value) or value in ("code", "multilingual")):
            errors.append(
                f'"language" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
                '(two/three letters), or a special value like "code", "multilingual".'
            )
    for name, kind in (("base_model", "model"), ("datasets", "dataset")):
        for value in _as_list(data.get(name)):
            if not (isinstance(value, str) and _REPO_ID.fullmatch(value)):
                errors.append(
                    f'"{name}" with value "{value}" is not valid. Use a {kind} id from https://hf.co/{kind}s.'
                )
    # huggingface/hub-docs, modelcard.md: an id like `my-license-1.0`; "LICENSE", "LICENSE.md" or a URL. What the Hub
    # says of others is not documented: these words are ours.
    if "license_name" in data and not re.fullmatch(r"[a-z0-9][a-z0-9._+-]*", str(data["license_name"])):
        errors.append('"license_name" must be an id')
    if "license_link" in data and not re.fullmatch(r"https?://\S+|[\w-][\w.-]*", str(data["license_link"])):
        errors.append('"license_link" must be a file of the repository or a URL')
    for name in ("library_name", "pipeline_tag"):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    tags = data.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        errors.append('"tags" must be an array of strings')
    if data.get("base_model_relation", "quantized") not in _RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]')
    if "model-index" in data and not isinstance(data["model-index"], list):
        errors.append('"model-index" must be an array')
    return errors


def _warnings(data: dict[str, Any]) -> list[str]:
    return [] if "license" in data else ["The license is not specified"]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
