"""A made-up language of few templates, in the layout of the wheel."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

APPLES = {
    "question": "Ada has 12 red apples and gives 1/4 of them away. How many are left?",
    "answer": "She gives 12 * 1/4 = <<12*1/4=3>>3 away.\nSo 12 - 3 = 9 are left.\n#### 9",
    "question_annotated": "{name,Ada} has {n,12} {colour,red} apples and gives {share,1/4} of "
    "them away. How many are left?\n\n#init:\n- name = sample(names)\n- colour = sample(['red', "
    "'green'])\n- $n = range(2, 60)\n- $share = sample(fractions)\n\n#conditions:\n"
    "- is_int(n * share)\n- n * share < n - 1\n\n#answer: n - n * share\n",
    "answer_annotated": "She gives {n} * {share} = <<{n}*{share}={n*share}>>{n*share} away.\n"
    "So {n} - {n*share} = {n-n*share} are left.\n#### {n-n*share}\n",
}
TRIPS = {
    "question": "Emmy drives two trips of 2.5 miles. how many miles is that?",
    "answer": "2*2.5 = 5 miles.\n#### 5",
    "question_annotated": "{name,Emmy} drives {times,two} trips of {miles,2.5} miles. how many "
    "miles is that?\n#init:\n- name = sample(names)\n- times, k = range_str(2, 5, 1, numbers)\n"
    "- miles = arange(0.5, 9, 0.5)\n- unit = plural(k * miles, 'mile', 'miles')\n#conditions:\n"
    "- is_int(k * miles)\n#answer: k * miles",
    "answer_annotated": "{k}*{miles} = {k*miles} {unit}.\n#### {k*miles}",
}
WORDS = {
    "names": ["Ada", "Emmy", "Sofya"],
    "fractions": ["1/2", "1/4", "2/3"],
    "numbers": ["one", "two", "three", "four"],
    "_note": "not a list",
}


def write_language(folder: Path, templates: Mapping[int, Mapping[str, Any]]) -> Path:
    """Write the templates, by number; a template is repeated under several numbers as it is."""
    (folder / "symbolic").mkdir(parents=True)
    (folder / "replacements.json").write_text(json.dumps(WORDS))
    for number, template in templates.items():
        lines = [
            f"{key} = {str(value).lower() if isinstance(value, bool) else json.dumps(value)}"
            for key, value in {"id_shuffled": number, **template}.items()
        ]
        (folder / "symbolic" / f"{number:04d}.toml").write_text("\n".join(lines))
    return folder
