"""What the Hub accepts in a model card's front matter and as a repository's name, checked without asking it.

The licenses are those that the Hub's own error message lists (huggingface_hub issue 4218, May 2026); languages as in
huggingface.co/docs/hub/model-cards: ISO 639-1, 639-2 or 639-3, "code" or "multilingual"; names as in huggingface_hub's
`utils/_validators.py`; `license_name` (an id such as my-license-1.0) and `license_link` (a URL, or a file such as
LICENSE in the repository) as in huggingface/hub-docs, `modelcard.md`.
"""

from __future__ import annotations

import re
from typing import Any

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
LICENSES = frozenset(_LICENSES.split())
# ISO 639-1. Of the three-letter codes there are 7,900: their form is all that is checked, as the Hub does.
_LANGUAGES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
code multilingual
"""
LANGUAGES = frozenset(_LANGUAGES.split())
_PIPELINE_TAGS = """
feature-extraction sentence-similarity fill-mask text-classification token-classification question-answering
multiple-choice
"""
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())
"""Those of the Hub's that an encoder can have."""
RELATIONS = frozenset({"adapter", "finetune", "merge", "quantized"})
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}")


def is_license(value: object) -> bool:
    """Whether the Hub knows this license identifier."""
    return isinstance(value, str) and value in LICENSES


def is_license_name(value: object) -> bool:
    """Return whether this can be the id of a license that is none of the Hub's."""
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9._+-]{0,95}", value) is not None


def is_license_link(value: object) -> bool:
    """Return whether this is a URL, or the relative path of a file, with no character that Markdown or YAML reads."""
    if not isinstance(value, str) or len(value) > 500:
        return False
    url = re.fullmatch(r"https?://[\w.-]+(?::\d+)?(?:/[\w./~%:@!$&*+,;=?#-]*)?", value, re.ASCII)
    return url is not None or (
        re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", value, re.ASCII) is not None and ".." not in value
    )


def is_language(value: object) -> bool:
    """Whether the Hub takes this for a language: in lower case, two letters of ISO 639-1 or any three."""
    return isinstance(value, str) and (value in LANGUAGES or re.fullmatch("[a-z]{3}", value) is not None)


def is_repo_id(value: object) -> bool:
    """Whether this can be the id of a model or dataset on the Hub, `name` or `owner/name`."""
    if not isinstance(value, str) or _REPO_ID.fullmatch(value) is None:
        return False
    return "--" not in value and ".." not in value and not value.endswith(".git")


def front_matter_problems(data: dict[str, Any]) -> list[str]:
    """What validate-yaml would refuse, and what this project never writes, one line each."""
    problems = [f'"{name}" is not a field that our cards have' for name in sorted(set(data) - set(_FIELDS))]
    for name, (is_valid, several, wanted) in _FIELDS.items():
        if name in data:
            value = data[name]
            values = value if several and isinstance(value, list) else [value]
            problems += [f'"{name}" is {item!r}: not {wanted}' for item in values if not is_valid(item)]
    return problems


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


# name -> (check of one value, may there be several, what it should be). An allow-list: nothing else is written.
_FIELDS = {
    "library_name": (lambda value: value == "mlx", False, "mlx"),
    "license": (is_license, True, "a license identifier that the Hub knows"),
    "license_name": (is_license_name, False, "the id of a license"),
    "license_link": (is_license_link, False, "a URL or a file of the repository"),
    "language": (is_language, True, "an ISO 639 code in lower case"),
    "datasets": (is_repo_id, True, "the id of a dataset"),
    "base_model": (is_repo_id, False, "the id of a model"),
    "base_model_relation": (RELATIONS.__contains__, False, "one of " + ", ".join(sorted(RELATIONS))),
    "pipeline_tag": (PIPELINE_TAGS.__contains__, False, "a task of the Hub's that an encoder has"),
    "tags": (_is_text, True, "text"),
}
FIELDS = tuple(_FIELDS)
