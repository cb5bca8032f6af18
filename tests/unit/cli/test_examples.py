"""deploy/examples: the commented configuration is the manual, so it has to be complete and right."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from overmesh.config import AgentConfig, ControllerConfig, load

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"


@pytest.mark.parametrize("cls", [ControllerConfig, AgentConfig])
def test_lists_every_key_with_its_default(cls: Any, tmp_path: Path) -> None:
    text = (EXAMPLES / cls.file.name).read_text()
    assert load(cls, {}, file=EXAMPLES / cls.file.name, environ={}) == cls()
    settings = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    assert re.findall(r"^(\w+) = ", settings, re.MULTILINE) == [field.name for field in fields(cls)]
    file = tmp_path / cls.file.name
    file.write_text(settings)
    assert load(cls, {}, file=file, environ={}) == cls()
