"""What stands on a command line: the beginnings of flags, and files of flags."""

import itertools
from pathlib import Path
from typing import Any

import yaml
from typer.core import TyperCommand, TyperGroup

from fastdm.errors import FastDMError, unknown
from fastdm.system.files import user_path
from fastdm.system.text import printable
from fastdm.version import __version__

CONFIG = "--config"
PRESET = "--preset"
_MOST_BYTES = 1 << 20


class Command(TyperCommand):
    """A command whose flags may be cut short while they are unique, and may come from a YAML file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # as for completion, where a word may be anything
            flags = _Flags(self.params)
            words = flags.completed(args)
            configured = flags.configured(words)
            args = [*flags.preset([*configured, *words]), *configured, *words]
        return list(super().parse_args(ctx, args))


class Program(TyperGroup):
    """The whole command line. Completion is installed for the shell that asks; a word after it would be ignored."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) > 1 and _plain(args[0]) in ("--install_completion", "--show_completion"):
            raise FastDMError(
                f"{args[0]} takes no {printable(args[1])!r} after it: it is for the shell that it is run in, which may "
                "be bash, zsh, fish or PowerShell"
            )
        return list(super().parse_args(ctx, args))


class _Flags:
    """The flags of a command, by every spelling that it takes."""

    def __init__(self, parameters: list[Any]) -> None:
        options = [each for each in parameters if each.param_type_name == "option"]
        self._by_name = {_plain(name): each for each in options for name in (*each.opts, *each.secondary_opts)}
        self._by_name |= {"--help": None}

    def completed(self, words: list[str]) -> list[str]:
        """The words, with the beginning of a flag made whole if it is that of one flag only."""
        end = words.index("--") if "--" in words else len(words)
        return [*map(self._complete, words[:end]), *words[end:]]

    def _complete(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        begin = _plain(flag)
        if not flag.startswith("--") or begin in self._by_name:
            return word
        fits = [name for name in self._by_name if name.startswith(begin)]
        if len({id(self._by_name[name]) for name in fits}) > 1:
            raise FastDMError(f"{flag} is the beginning of {' and '.join(fits)}; write more of it")
        return min(fits, key=len) + equals + value if fits else word

    def configured(self, words: list[str]) -> list[str]:
        """The flags in the file that `--config` names; those on the command line come later, and hold."""
        path = self._value(CONFIG, words)
        return [] if path is None else self._from_file(user_path(path))

    def preset(self, words: list[str]) -> list[str]:
        """The flags of the preset that `--preset` names, as far as the command has them; all others hold."""
        name = self._value(PRESET, words)
        if name is None:
            return []
        from fastdm.condensation.presets import find_preset

        options = find_preset(name).options
        return [f"--{flag}={value}" for flag, value in options.items() if f"--{flag}" in self._by_name]

    def _value(self, wanted: str, words: list[str]) -> str | None:
        """What the words give to a flag, if the command has it; the last holds."""
        found = None
        for word, following in itertools.zip_longest(words, words[1:]):
            flag, equals, value = word.partition("=")
            if flag.startswith("--") and _plain(flag) == wanted and wanted in self._by_name:
                found = value if equals else following
        return found

    def _from_file(self, path: Path) -> list[str]:
        words: list[str] = []
        for name, value in read_config(path).items():
            flag = _plain(name)
            if flag not in self._by_name or flag in (CONFIG, "--help"):
                known = [each.removeprefix("--") for each in self._by_name if each not in (CONFIG, "--help")]
                raise FastDMError(f"{path}: {unknown('setting', name, known)}")
            option = self._by_name[flag]
            if option.is_flag:
                if not isinstance(value, bool):
                    raise FastDMError(f"{path}: {name} is {value!r}; it must be true or false")
                words += [flag] if value else option.secondary_opts[:1]
            else:
                words.append(f"{flag}={value}")
        return words


def _plain(flag: str) -> str:
    return "--" + flag.removeprefix("--").replace("-", "_").lower()


def read_config(path: Path) -> dict[str, Any]:
    """The flags in a YAML (or JSON) file, without those that are null."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise FastDMError(f"{path} is too large to be a file of flags")
        content = yaml.safe_load(text)
    except OSError as error:
        raise FastDMError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FastDMError(f"{path} is not YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(content, dict):
        raise FastDMError(f"{path} must hold one flag in a line, such as 'ipc: 10'")
    node = yaml.compose(text, yaml.SafeLoader)
    written = [_plain(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    if twice := [name for name in written if written.count(name) > 1]:
        raise FastDMError(f"{path} gives {twice[0].removeprefix('--')} twice")
    for name, value in content.items():
        if not isinstance(name, str):
            raise FastDMError(f"{path}: {name!r} is not the name of a flag, as YAML reads it")
        if not (value is None or isinstance(value, str | int | float | bool)):
            raise FastDMError(f"{path}: {name} is {value!r}; a flag has one value")
    return {name: value for name, value in content.items() if value is not None}


def config_text(flags: dict[str, Any]) -> str:
    """The content of a file that gives these flags to `--config`; those that are None are left out."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    given = {name: value for name, value in values.items() if value is not None}
    return f"# fastdm {__version__}: fastdm condense --config THIS_FILE\n" + yaml.safe_dump(
        given, sort_keys=False, allow_unicode=True
    )
