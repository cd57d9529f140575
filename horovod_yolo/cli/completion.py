"""``horovod-yolo completion bash|zsh``: flags, words, choices and files at a press of the tab key."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from horovod_yolo.cli.bench import comm_parser, step_parser
from horovod_yolo.cli.doctor import doctor_parser
from horovod_yolo.cli.export import export_parser
from horovod_yolo.cli.install_horovod import install_horovod_parser
from horovod_yolo.cli.one_process import guarded
from horovod_yolo.cli.plan import plan_parser
from horovod_yolo.cli.replay import replay_parser
from horovod_yolo.cli.report import report_parser
from horovod_yolo.cli.tune import tune_parser
from horovod_yolo.cli.val import val_parser
from horovod_yolo.config.load import Parser, train_parser
from horovod_yolo.config.predict_flags import predict_parser
from horovod_yolo.config.words import words_of
from horovod_yolo.launch.command import parser as launch_parser

_WITH_WORDS = ("train", "tune", "val", "predict", "export")
# Those of families.zoo, which loads torch: a shell that starts does not wait for that.
MODELS = (
    *(f"yolov5{size}{kind}" for kind in ("", "6", "u") for size in "nsmlx"),
    *(f"{body}{size}" for body in ("yolov8", "yolo11", "yolo26") for size in "nsmlx"),
    *(f"yolov3{kind}" for kind in ("", "-spp", "-tiny", "u", "-sppu", "-tinyu")),
)
_BELOW: Mapping[str, Sequence[str]] = {
    "bench": ("comm", "step"),
    "completion": ("bash", "zsh"),
    "data": ("check", "convert", "digits", "import-weights", "pack", "split", "stats"),
    "eval": ("--gt", "--dt", "--json"),
}

# The command stands first, or behind `launch ... --`. bash divides name=value into three words. zsh does not:
# a proposal begins with the name there.
_SCRIPT = """\
# horovod-yolo completion {shell}
_horovod_yolo() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} all= head= value= at=1 what i
  COMPREPLY=()
  if [[ ${{COMP_WORDS[1]}} == launch ]]; then
    for ((i = 2; i < COMP_CWORD; i++)); do
      if [[ ${{COMP_WORDS[i]}} == -- ]]; then at=$((i + 1)); break; fi
    done
  fi
  if [[ $word == = ]]; then
    value=1 word=
  elif [[ $before == = ]]; then
    value=1 before=${{COMP_WORDS[COMP_CWORD-2]}}
  elif [[ $word == *=* ]]; then
    value=1 head=${{word%%=*}}= before=${{word%%=*}} word=${{word#*=}}
  fi
  if [[ $value ]]; then before=--${{before#--}} before=${{before//_/-}}; fi
  if ((COMP_CWORD == at)); then
    {commands}
  else
    what=${{COMP_WORDS[at]}}
    if [[ $what == bench ]] && ((COMP_CWORD > at + 1)); then what="bench ${{COMP_WORDS[at+1]}}"; fi
    case $what in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$all" -- "$word"))
  if [[ $head && ${{COMPREPLY[0]-}} ]]; then COMPREPLY=("${{COMPREPLY[@]/#/$head}}"); fi
  if [[ ${{COMPREPLY[0]-}} == *= ]]; then compopt -o nospace 2>/dev/null || true; fi
}}
complete -o default -F _horovod_yolo horovod-yolo
"""
_FOR_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion_main(argv: Sequence[str], commands: Collection[str]) -> int:
    """Print a script that a shell reads at its start."""

    def run() -> None:
        p = Parser(
            prog="horovod-yolo completion",
            allow_abbrev=False,
            description="Print what completes horovod-yolo's commands and flags, for the start of a shell: "
            'eval "$(horovod-yolo completion bash)" in ~/.bashrc, or with zsh in ~/.zshrc.',
        )
        p.add_argument("shell", choices=_BELOW["completion"])
        shell = p.parse_strictly(argv).shell
        print((_FOR_ZSH if shell == "zsh" else "") + script(shell, commands), end="")

    return guarded(run)


def script(shell: str, commands: Collection[str]) -> str:
    """The script, in the words of bash, which zsh understands too."""
    cases = "\n".join(
        [*(_case(name, parsers) for name, parsers in _parsers().items()), *map(_below, _BELOW.items())]
    )
    return _SCRIPT.format(shell=shell, commands=_all(commands), cases=cases)


def _parsers() -> dict[str, Parser]:
    return {
        "train": train_parser(),
        "tune": tune_parser(),
        "val": val_parser(),
        "predict": predict_parser(),
        "replay": replay_parser(),
        "export": export_parser(),
        "report": report_parser(),
        "launch": launch_parser(),
        "doctor": doctor_parser(),
        "plan": plan_parser(),
        "install-horovod": install_horovod_parser(),
        "bench comm": comm_parser(),
        "bench step": step_parser(),
    }


def _below(item: tuple[str, Sequence[str]]) -> str:
    return f"      {item[0]}) {_all(item[1])} ;;"


def _all(words: Iterable[str]) -> str:
    """What may stand there; where it is nothing, the shell proposes files."""
    return f"all={shlex.quote(' '.join(words))}"


def _case(name: str, parser: Parser) -> str:
    """What may stand behind a command, and behind those of its flags that have choices."""
    every = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = [flag for action in every for flag in action.option_strings if flag.startswith("--")]
    if name in _WITH_WORDS:
        named = {flag.lstrip("-").replace("-", "_") for flag in flags if flag != "--help"}
        flags += sorted(f"{word}=" for word in named.union(words_of(name)))
    lines = [
        f"          {'|'.join(action.option_strings)}) {_all(map(str, _choices(action)))} ;;"
        for action in every
        if action.option_strings and (_choices(action) or action.nargs is None)
    ]
    cases = "\n".join([*lines, f"          *) if [[ ! $value ]]; then {_all(flags)}; fi ;;"])
    return f"      {shlex.quote(name)})\n        case $before in\n{cases}\n        esac ;;"


def _choices(action: argparse.Action) -> Iterable[object]:
    return MODELS if action.dest == "cfg" else action.choices or ()
