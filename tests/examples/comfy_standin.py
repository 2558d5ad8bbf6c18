"""A small stand-in for ComfyUI, written from its public documentation (docs.comfy.org: the V3 schema, inputs, cache
control, progress), for tests of the nodes in examples/comfyui. None of ComfyUI's code is in it. Names, order and
defaults of arguments are those of its `comfy_api/latest/_io.py` at commit 004b1b5b and `comfy_api/latest/__init__.py`
at 09b90547.

It knows the inputs, outputs and arguments that those nodes use and refuses all others, checks a workflow in the format
of the API, runs what its output nodes need in inference mode, and runs nothing again whose inputs are those of the run
before.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


@dataclass
class Input:
    """An input of a node; a widget where it has a default."""

    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    io_type: str = field(init=False, default="*")

    def check(self, value: Any) -> str | None:
        """What is wrong with a constant."""
        return f"{self.id} must be connected"


@dataclass(kw_only=True)
class Widget(Input):
    default: Any = None


@dataclass(kw_only=True)
class Number(Widget):
    min: float | None = None
    max: float | None = None
    step: float | None = None

    def check(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{self.id}: {value!r} is no number"
        if self.min is not None and value < self.min:
            return f"{self.id}: {value} is smaller than {self.min}"
        return f"{self.id}: {value} is larger than {self.max}" if self.max is not None and value > self.max else None


@dataclass(kw_only=True)
class IntInput(Number):
    control_after_generate: bool | None = None


@dataclass(kw_only=True)
class StringInput(Widget):
    multiline: bool = False

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, str) else f"{self.id}: {value!r} is no text"


@dataclass(kw_only=True)
class ComboInput(Widget):
    options: list[str] = field(default_factory=list)

    def check(self, value: Any) -> str | None:
        return None if value in self.options else f"{self.id}: {value!r} not in {self.options}"


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    io_type: str = field(init=False, default="*")


def io_type(name: str, kind: type[Input]) -> Any:
    """What `io.Int` and its like are: a name with `Input` and `Output`."""

    def made(of: type) -> Any:
        return dataclass(type(of.__name__, (of,), {"__annotations__": {}, "io_type": name}))

    return type(name, (), {"io_type": name, "Input": made(kind), "Output": made(Output)})


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *values: Any) -> None:
        self.values = values


class ComfyNode(ABC):
    @classmethod
    @abstractmethod
    def define_schema(cls) -> Schema: ...

    @classmethod
    @abstractmethod
    def execute(cls, **inputs: Any) -> NodeOutput: ...

    @classmethod
    def validate_inputs(cls) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        return None


class ComfyExtension(ABC):
    loaded = False

    async def on_load(self) -> None:
        """Called once when the extension is loaded."""
        self.loaded = True

    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]: ...


class InterruptProcessingException(Exception):
    """The user has pressed Cancel."""


class SaveImage(ComfyNode):
    """The node of that name, which keeps the images here instead of writing files."""

    @classmethod
    def define_schema(cls) -> Schema:
        inputs = [IMAGE.Input("images"), STRING.Input("filename_prefix", default="ComfyUI")]
        return Schema("SaveImage", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, images: Any, filename_prefix: str) -> NodeOutput:
        return NodeOutput(images)


IMAGE, STRING = io_type("IMAGE", Input), io_type("STRING", StringInput)


@dataclass(frozen=True)
class Kept:
    """What a node gave, and for which inputs."""

    key: Any
    values: tuple[Any, ...]


class InvalidWorkflow(Exception):
    """A workflow that ComfyUI would not queue; the message says which node and input."""


class Comfy:
    """A running ComfyUI.

    Args:
        device: the one that it computes on.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.nodes: dict[str, type[ComfyNode]] = {"SaveImage": SaveImage}
        self.progress: list[tuple[float, float, Any]] = []
        self.interrupt_at: int | None = None  # after so many calls of progress
        self.executed: list[str] = []
        self._kept: dict[str, Kept] = {}

    def modules(self) -> dict[str, ModuleType]:
        """The modules that nodes import."""

        class Execution:
            def set_progress(_, value: float, max_value: float, node_id: str | None = None,
                             preview_image: Any = None, ignore_size_limit: bool = False) -> None:  # fmt: skip
                self.progress.append((value, max_value, preview_image))

        class ComfyAPISync:
            execution = Execution()

        def throw_exception_if_processing_interrupted() -> None:
            if self.interrupt_at is not None and len(self.progress) >= self.interrupt_at:
                self.interrupt_at = None
                raise InterruptProcessingException

        def module(name: str, **names: Any) -> ModuleType:
            made = ModuleType(name)
            made.__dict__.update(names)
            return made

        io = module(
            "io", Schema=Schema, ComfyNode=ComfyNode, NodeOutput=NodeOutput, Custom=lambda name: io_type(name, Input),
            Int=io_type("INT", IntInput), Float=io_type("FLOAT", Number), String=STRING, Image=IMAGE,
            Combo=io_type("COMBO", ComboInput),
        )  # fmt: skip
        latest = module("comfy_api.latest", io=io, ComfyExtension=ComfyExtension, ComfyAPISync=ComfyAPISync)
        management = module(
            "comfy.model_management",
            get_torch_device=lambda: self.device,
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
            InterruptProcessingException=InterruptProcessingException,
        )
        comfy = module("comfy", model_management=management, __path__=[])
        api = module("comfy_api", latest=latest, __path__=[])
        return {m.__name__: m for m in (api, latest, comfy, management)}

    @contextmanager
    def custom_nodes(self, folder: Path) -> Iterator[None]:
        """Load a folder of custom nodes as a package, by its path, for as long as the block runs."""
        name = f"custom_nodes.{folder.name}"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        before = dict(sys.modules)
        sys.modules.update(self.modules())
        sys.modules[name] = package = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(package)
            asyncio.run(self._extend(package))
            yield
        finally:
            for key in [k for k in sys.modules if k.split(".")[0] in ("comfy", "comfy_api", "custom_nodes")]:
                del sys.modules[key]
            sys.modules.update({k: v for k, v in before.items() if k.startswith("comfy")})

    async def _extend(self, package: ModuleType) -> None:
        found = package.comfy_entrypoint()
        extension = await found if inspect.isawaitable(found) else found
        assert isinstance(extension, ComfyExtension)
        await extension.on_load()
        for node in await extension.get_node_list():
            schema = node.define_schema()
            assert schema.node_id not in self.nodes and issubclass(node, ComfyNode)
            ids = [one.id for one in [*schema.inputs, *schema.outputs] if one.id is not None]
            assert len(set(ids)) == len(ids), "ids are unique among inputs and outputs together"
            names = list(inspect.signature(node.execute).parameters)
            assert sorted(names) == sorted(one.id for one in schema.inputs), "execute takes the inputs by their ids"
            self.nodes[schema.node_id] = node

    def queue(self, workflow: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Check a workflow and run it; what its output nodes got.

        Raises:
            InvalidWorkflow: nothing was run.
            InterruptProcessingException: it was cancelled.
            Exception: of a node.
        """
        for number in workflow:
            self._check(workflow, number)
        self.executed, self.progress = [], []
        outputs = [n for n, node in workflow.items() if self._schema(node).is_output_node]
        done: dict[str, Kept] = {}
        with torch.inference_mode():
            return {number: self._run(workflow, number, done).values for number in outputs}

    def _schema(self, node: dict[str, Any]) -> Schema:
        return self.nodes[node["class_type"]].define_schema()

    def _check(self, workflow: dict[str, Any], number: str) -> None:
        node = workflow[number]
        if node["class_type"] not in self.nodes:
            raise InvalidWorkflow(f"{number}: there is no node {node['class_type']}")
        kind, schema, given = self.nodes[node["class_type"]], self._schema(node), node["inputs"]
        inputs = {one.id: one for one in schema.inputs}
        # A node that checks an input itself is not checked by ComfyUI in that.
        own = inspect.signature(kind.validate_inputs).parameters
        wrong = [f"{name} is no input" for name in given if name not in inputs]
        wrong += [f"{name} is missing" for name, one in inputs.items() if name not in given and not one.optional]
        constants = {name: value for name, value in given.items() if not isinstance(value, list)}
        for name, value in given.items():
            if isinstance(value, list) and name in inputs:
                source = self._schema(workflow[value[0]]).outputs[value[1]]
                if source.io_type != inputs[name].io_type:
                    wrong.append(f"{name} takes {inputs[name].io_type}, not {source.io_type}")
            elif name in inputs and name not in own and (told := inputs[name].check(value)) is not None:
                wrong.append(told)
        answer = kind.validate_inputs(**{name: value for name, value in constants.items() if name in own})
        if wrong or answer is not True:
            raise InvalidWorkflow(f"{number}: {'; '.join([*wrong, *([str(answer)] if answer is not True else [])])}")

    def _run(self, workflow: dict[str, Any], number: str, done: dict[str, Kept]) -> Kept:
        """A node with all that it needs; what it gave before, where nothing has changed."""
        if number in done:
            return done[number]
        node = workflow[number]
        kind, values, keys = self.nodes[node["class_type"]], {}, {}
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = self._run(workflow, value[0], done)
                values[name], keys[name] = source.values[value[1]], (source.key, value[1])
            else:
                values[name] = keys[name] = value
        constants = {name: value for name, value in values.items() if not isinstance(node["inputs"][name], list)}
        taken = inspect.signature(kind.fingerprint_inputs).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        print_ = kind.fingerprint_inputs(**{n: v for n, v in constants.items() if every or n in taken})
        key = (node["class_type"], tuple(sorted(keys.items())), repr(print_))
        kept = self._kept.get(number)
        if kept is None or kept.key != key:
            state = dict(vars(kind))
            self.executed.append(node["class_type"])
            kept = Kept(key, kind.execute(**values).values)
            assert dict(vars(kind)) == state, "nodes hold no state"
            outputs = self._schema(node).outputs
            assert not outputs or len(kept.values) == len(outputs)
            self._kept[number] = kept
        done[number] = kept
        return kept
