"""Print docs/options.md from the table of options: ``python docs/options.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedclip_plugin.config.fields import Option
from fedclip_plugin.settings.options import FILES, TITLES, Table

INTRODUCTION = """# Options

Made by `python docs/options.py`; do not edit.

Every option has one name. `--local-epochs 2` on the command line is

- `local_epochs = 2` under `[train]` in a TOML file (`--config`, `FEDCLIP_CONFIG`, or
  `fedclip.toml` in the working directory of a host),
- the variable `FEDCLIP_LOCAL_EPOCHS=2`,
- `fedclip_local_epochs: 2` in FedML's YAML, where FedML has no key of its own for it,
- `local-epochs = 2` in Flower's run config, and
- `local_epochs=2` in Python.

Flags, or a host's own keys, win over variables, and these over the file. In Python
there are neither variables nor files.

A value means the same everywhere. A text is one value, blanks and all:
`fedclip_target: Real World` is one domain. Options that take several values: repeat the
flag, or write several after it; in TOML and YAML write a list; where only a text fits,
write the list into the text (`FEDCLIP_PROMPT="['a {}', 'the {}']"`, or in quotes as in
a shell: `"'a {}' 'the {}'"`); numbers need no quotes (`FEDCLIP_SEED="0 1 2"`). Switches
are on/off, true/false, yes/no or 1/0.

`~` and `$VARIABLES` in paths are replaced, and what is unknown of them is refused.
Relative paths begin in the working directory, not beside the file that says them.

What has no effect beside the other options, because it is another algorithm's, say, or
because a host decides it, is told in a note, which `summary.json` and `report.html`
keep.

An algorithm's own options are a section of its name. Those of a package of others
appear in the same places as soon as it is installed: `shrinkage` of `gda` is
`[gda] shrinkage`, `--gda-shrinkage`, `FEDCLIP_GDA_SHRINKAGE`, `fedclip_gda_shrinkage`
and `gda-shrinkage`.
"""


def as_markdown(groups: Mapping[str, Iterable[Option]]) -> str:
    """docs/options.md."""
    text, shown = INTRODUCTION, set[str]()
    for section, options in groups.items():
        new = [o for o in options if o.name not in shown]
        shown |= {o.name for o in new}
        if not new:
            continue
        title = TITLES.get(section, f"of --alg {section}")
        toml = f", `[{section}]`" if section and section != FILES else ""
        text += f"\n## {title[0].upper()}{title[1:]}{toml}\n\n"
        text += "| option | TOML | value | default | |\n|---|---|---|---|---|\n"
        for o in new:
            flags = ", ".join(f"`{flag}`" for flag in (o.flag, *o.aliases))
            several = ", several" if o.several else ""
            cells = [
                flags,
                f"`{o.field}`",
                o.expected + several,
                o.default_text,
                o.help,
            ]
            text += (
                "| "
                + " | ".join(c.replace("|", "\\|").replace("<", "&lt;") for c in cells)
                + " |\n"
            )
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(as_markdown(Table().groups), end="")
