"""The verifier `json_schema`: an answer is JSON that fits a schema."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from harness import UsageError, Verifier, hookimpl

from .places import behind_thoughts

LONGEST = 20_000  # characters of an answer
_BLOCK = r"(?ms)^ {0,3}```[^\n]*\n(.*?)(?:^ {0,3}```|\Z)"  # a fenced block


@dataclass
class JsonSchema(Verifier):
    """Right if an answer, or its last fenced block, is JSON that fits a JSON Schema.

    Without `schema` and `schema_file`, each gold answer is a schema. The check runs in a child
    process: an answer on which it takes longer than `time_limit` is wrong. It needs the package
    jsonschema: pip install 'alignment-harness[json]'.
    """

    name, reads_prompt = "json_schema", False

    schema: dict = field(default_factory=dict)  # the schema, as a table
    schema_file: str = ""  # or a JSON file with it; a path beside the suite file
    must_end: bool = True  # an answer that was cut at the length limit is wrong
    time_limit: float = 1.0  # seconds of processor time for one answer

    def check(self):
        """Raise ValueError for a schema that cannot be used, or a package that is missing."""
        if find_spec("jsonschema") is None:
            raise ValueError("needs jsonschema: pip install 'alignment-harness[json]'")
        if self.schema and self.schema_file:
            raise ValueError("give either schema or schema_file")
        if self.time_limit <= 0:
            raise ValueError("time_limit must be above 0")
        if self.schema:
            _check_schema(self.schema)

    def read_gold(self, text):
        """Return nothing if the verifier has a schema; otherwise the row's schema."""
        if self._own_schema() is not None:
            return ""
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON: {text[:40]!r}") from error
        _check_schema(schema)
        return json.dumps(schema, sort_keys=True)

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion; None if a schema is needed and missing."""
        own = self._own_schema()
        schemas = [gold if own is None else own for gold in golds]
        rows = zip(completions, schemas, ended, strict=True)
        return [
            None if schema is None else float(self._grade(text, schema, end))
            for text, schema, end in rows
        ]

    def data_files(self):
        """Return the file with the schema."""
        return [Path(self.folder, self.schema_file)] if self.schema_file else []

    def examples(self):
        if self.schema or self.schema_file:
            return []
        schema = '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}'
        return [(schema, '{"n": 72}'), (schema, 'Here it is:\n```json\n{"n": 72}\n```')]

    def close(self):
        """End the child process."""
        self._worker().close()

    def _worker(self):
        from .timed_worker import worker_for  # imported late: `harness list` starts no child

        return worker_for(f"{__name__}:fits", self.time_limit)

    def _own_schema(self) -> str | None:
        """Return the schema of the options as text; None if every row has its own."""
        if self.schema:
            return json.dumps(self.schema, sort_keys=True)
        return _read_schema(self.data_files()[0]) if self.schema_file else None

    def _grade(self, text: str, schema: str, end: bool) -> bool:
        if (self.must_end and not end) or len(text) > LONGEST:
            return False
        text = behind_thoughts(text)
        blocks = re.findall(_BLOCK, text)
        question = [schema, blocks[-1] if blocks else text]
        (answer,) = self._worker().ask([question])
        return answer.get("value") is True


def fits(question: list[str]) -> bool:
    """Return whether a text is JSON that fits a schema. Runs in the child."""
    schema, text = question
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return _validator(schema).is_valid(value)


def _no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=1000)
def _validator(schema: str):
    from jsonschema.validators import validator_for

    parsed = json.loads(schema)
    return validator_for(parsed)(parsed)


def _check_schema(schema: object) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise ValueError(f"is no JSON Schema: {str(schema)[:40]!r}: expected an object")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.message[:100]}") from error


@lru_cache(maxsize=100)
def _read_schema(file: Path) -> str:
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
        _check_schema(schema)
    except (OSError, ValueError) as error:
        raise UsageError(f"verifier json_schema: schema_file {file}: {error}.") from error
    return json.dumps(schema, sort_keys=True)


@hookimpl
def register_verifiers(register):
    register(JsonSchema)
