"""The text of docs/reference/python.md: the public names of the five public modules, from their source."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from fl_queue.strategies import STRATEGIES

MODULES = (
    "fl_queue",
    "fl_queue.tasks",
    "fl_queue.strategies",
    "fl_queue.errors",
    "fl_queue.metrics",
)
_SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source", "Attributes")
_WIDTH = 88
#: Classes that users do not construct: their other methods make them.
_MADE = ("Run",)
_Function = ast.FunctionDef | ast.AsyncFunctionDef

_HEAD = """# Python API

Rendered from the docstrings by `make docs`. These names are public, and no others: a name that changes keeps
its old spelling, with a `DeprecationWarning`, for one release. How to use them: [from Python](../guides/python.md),
[a task of your own](../guides/your-own-task.md), [strategies](strategies.md).
"""


def render() -> str:
    """The whole page."""
    modules = [importlib.import_module(name) for name in MODULES]
    index = [
        f"- [`{module.__name__}`](#{_slug(module.__name__)}): "
        + ", ".join(f"`{name}`" for name, _ in public(module))
        for module in modules
    ]
    parts = [_HEAD, "\n".join(index) + "\n"]
    for module in modules:
        parts.append(f"## {module.__name__}\n")
        parts.append(markdown(module.__doc__ or ""))
        for name, value in public(module):
            parts += _entry(name, value)
    return "\n".join(part for part in parts if part.strip())


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """Names and values of ``__all__``; without one, of the classes and functions that the module defines."""
    if hasattr(module, "__all__"):
        names = [name for name in module.__all__ if not name.startswith("__")]
    else:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        ]
    return [(name, getattr(module, name)) for name in names]


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        node = _definition(value)
        assert isinstance(node, _Function)
        yield _code(_signature(name, node))
        yield markdown(value.__doc__ or "")
    elif value is STRATEGIES:
        yield "Name -> class of the built-in strategies.\n"
        yield _strategies()
    else:
        yield _code(f"{name} = {value}")


def _class(name: str, value: type) -> Iterator[str]:
    node = _definition(value)
    assert isinstance(node, ast.ClassDef)
    yield _code(_heading(name, value, node))
    yield markdown(value.__doc__ or "")
    attributes = list(_attributes(value, node))
    if attributes:
        yield "\n".join(["| attribute | meaning |", "|---|---|", *attributes]) + "\n"
    for item in node.body:
        if isinstance(item, _Function) and not item.name.startswith("_"):
            decorators = {ast.unparse(entry) for entry in item.decorator_list}
            is_property = bool(decorators & {"property", "cached_property"})
            yield f"#### {name}.{item.name}\n"
            if not is_property:
                yield _code(_signature(f"{name}.{item.name}", item))
            yield markdown(ast.get_docstring(item) or "")


def _heading(name: str, value: type, node: ast.ClassDef) -> str:
    """The class as it is called: with its bases, and the arguments of its constructor."""
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    text = f"class {name}({bases})" if bases else f"class {name}"
    if dataclasses.is_dataclass(value):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return f"{text}\n\n{_call(name, [_field(item) for item in fields])}"
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__" and name not in _MADE:
            item.returns = None
            return f"{text}\n\n{_signature(name, item)}"
    return text


def _field(item: ast.AnnAssign) -> str:
    text = ast.unparse(item.target) + ": " + ast.unparse(item.annotation)
    if item.value is None:
        return text
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) in (
        "field",
        "dataclasses.field",
    ):
        return f"{text} = ..."
    return f"{text} = {ast.unparse(item.value)}"


def _definition(value: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _attributes(value: type, node: ast.ClassDef) -> Iterator[str]:
    """A row for each attribute of the class that has a ``#:`` comment above it, or for each enum member."""
    lines = textwrap.dedent(inspect.getsource(value)).splitlines()
    for item in node.body:
        target = item.target if isinstance(item, ast.AnnAssign) else None
        if isinstance(item, ast.Assign):
            target = item.targets[0]
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        comments: list[str] = []
        at = item.lineno - 2
        while at >= 0 and lines[at].strip().startswith("#:"):
            comments.insert(0, lines[at].strip().removeprefix("#:").strip())
            at -= 1
        if comments:
            yield f"| `{target.id}` | {_inline(' '.join(comments)).replace('|', '&#124;')} |"


def _signature(name: str, node: _Function) -> str:
    """The signature as it is in the source, one argument a line where it is long."""
    texts = [text for text in _arguments(node.args) if text not in ("self", "cls")]
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return _call(name, texts, result)


def _call(name: str, texts: list[str], result: str = "") -> str:
    line = f"{name}({', '.join(texts)}){result}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){result}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(plain, defaults, strict=True):
        yield _argument(argument, default)
    if arguments.vararg is not None:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg is not None:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg
    if argument.annotation is not None:
        text += f": {ast.unparse(argument.annotation)}"
    if default is None:
        return text
    return f"{text}{' = ' if argument.annotation is not None else '='}{ast.unparse(default)}"


def _strategies() -> str:
    rows = [
        f"| `{name}` | `{strategy.__name__}` | {_inline(_first_line(strategy))} |"
        for name, strategy in STRATEGIES.items()
    ]
    return "\n".join(["| name | class | what it is |", "|---|---|---|", *rows]) + "\n"


def _first_line(value: type) -> str:
    module = inspect.getmodule(value)
    text = value.__doc__ or (module.__doc__ if module else "") or ""
    return inspect.cleandoc(text).split("\n\n")[0].replace("\n", " ")


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def markdown(docstring: str) -> str:
    """A docstring with Google sections as Markdown."""
    out: list[str] = []
    for title, block in _blocks(inspect.cleandoc(docstring).splitlines()):
        if title:
            out += [f"**{title}**", "", *_items(title, block), ""]
        else:
            out += [*_prose(block), ""]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(out))
    return re.sub(r"\n+```\n", "\n```\n", text).strip() + "\n"


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    title, block = "", list[str]()
    for line in lines:
        found = re.match(rf"({'|'.join(_SECTIONS)}): *(.*)$", line)
        if found or (title and line and not line.startswith(" ")):
            if any(block):
                yield title, block
            title, block = (found[1], [found[2]] if found[2] else []) if found else ("", [line])
        else:
            block.append(line)
    if any(block):
        yield title, block


def _items(title: str, block: list[str]) -> Iterator[str]:
    """One list item for each entry of a section, with its continuation lines."""
    entries: list[str] = []
    text = textwrap.dedent("\n".join(block)).splitlines()
    for line in filter(str.strip, text):
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    if title not in ("Args", "Raises", "Attributes"):
        yield _inline(" ".join(entries))
        return
    for entry in entries:
        name, colon, rest = entry.partition(": ")
        yield f"- `{name.strip('`')}`: {_inline(rest)}" if colon else f"- {_inline(entry)}"


def _prose(block: list[str]) -> Iterator[str]:
    """Text, with indented blocks as code."""
    code = False
    for line in block:
        indented = line.startswith("    ")
        if indented and not code:
            yield "```python" if re.match(r"\s+(from|import|with|class|def) ", line) else "```"
        elif code and line and not indented:
            yield "```"
            yield ""
        code = indented or (code and not line)
        if code:
            yield line.removeprefix("    ")
        else:
            yield _inline(re.sub(r"::$", ":", line))
    if code:
        yield "```"


def _inline(text: str) -> str:
    """Code in single backticks; what would be HTML or emphasis is escaped outside of them."""
    parts = re.split(r"(``.+?``)", text)
    return "".join(
        f"`{part[2:-2]}`"
        if part.startswith("``")
        else part.replace("<", "&lt;").replace("*", r"\*").replace("|", r"\|")
        for part in parts
    )
