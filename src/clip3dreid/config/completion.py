"""Complete command lines in shells: commands, groups and their options, keys, and files behind `=`."""

from __future__ import annotations

from collections.abc import Sequence

from clip3dreid.config.commands import command_names
from clip3dreid.config.folder import conf_dir, options
from clip3dreid.config.groups import ADDED, groups_of, root
from clip3dreid.config.help import entries
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose

_OPTIONS = ("--help", "--cfg", "--config-dir", "--multirun", "--resolve")
_WORDS = ("help", "--help", "--version", "--completion")

_BASH = """\
_clip3dreid() {
    local word="${COMP_LINE:0:$COMP_POINT}"
    local -a words
    read -ra words <<< "$word"
    [[ "$word" == *" " ]] && words+=("")
    local last="${words[${#words[@]}-1]}"
    local IFS=$'\\n'
    COMPREPLY=($(clip3dreid --complete "${words[@]:1}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
        # Behind `key=`: a file.
        COMPREPLY=($(compgen -f -- "${last#*=}"))
    elif [[ "$last" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        # The shell takes what stands before = for a word of its own.
        COMPREPLY=("${COMPREPLY[@]#"${last%%=*}="}")
    fi
}
complete -o nospace -F _clip3dreid clip3dreid"""
_ZSH = """\
#compdef clip3dreid
_clip3dreid() {
    local -a found
    found=("${(@f)$(clip3dreid --complete "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -S '' -- "${found[@]}"; else compset -P '*='; _files; fi
}
compdef _clip3dreid clip3dreid"""
_FISH = """\
function __clip3dreid
    set -l words (commandline -opc) (commandline -ct)
    clip3dreid --complete $words[2..-1] 2>/dev/null
end
complete -c clip3dreid -a '(__clip3dreid)'"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """Return what a shell is to run so that it completes.

    Raises:
        InputError: if there is nothing for that shell.
    """
    if not shell:
        raise InputError(f"--completion needs a shell behind it: {', '.join(SCRIPTS)}")
    choose("--completion", shell, SCRIPTS)
    return SCRIPTS[shell]


def completions(words: Sequence[str]) -> list[str]:
    """Return what the last word of a command line can become.

    Args:
        words: behind `clip3dreid`, the one to complete last, perhaps empty.

    Returns:
        Whole words; those that a value must follow end in `=`. Nothing where the value is a file or a number.
    """
    *before, word = words or [""]
    if not before:
        candidates = [*command_names(), *_WORDS]
    elif before[0] == "help":
        candidates = command_names()
    elif before[0].replace("-", "_") not in command_names():
        candidates = []
    else:
        candidates = _of_command(before[0].replace("-", "_"), word)
    return sorted(one for one in candidates if one.startswith(word))


def _of_command(command: str, word: str) -> list[str]:
    groups = [*groups_of(command), *(f"+{name}" for name in ADDED.get(command, ()))]
    key, equals, value = word.partition("=")
    if not equals:
        return [*_OPTIONS, *(f"{name}=" for name in (*groups, *_keys(command)))]
    if key not in groups:
        return []
    # Of a list or a sweep, the name behind the last comma.
    head = value[: max(value.rfind(","), value.rfind("[")) + 1]
    return [f"{key}={head}{name}" for name in options(key.lstrip("+").partition("@")[0])]


def _keys(command: str) -> list[str]:
    """Return the keys of a command's root, those of a training too where it takes them."""
    names = [command, *(entry for entry in root(command).get("defaults", ()) if entry == "train")]
    known = [
        entry
        for name in names
        for entry in entries((conf_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    ]
    nodes = {entry.key.rpartition(".")[0] for entry in known}
    data = ["data.root"] if "data" in groups_of(command) else []
    groups = {name.partition("@")[0] for name in groups_of(command)}
    return [*data, *(entry.key for entry in known if entry.key not in nodes and entry.key not in groups)]
