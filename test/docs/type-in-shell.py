"""Types into an interactive shell on a terminal and prints what it shows after each text: one JSON list of texts in, one out.

Usage: type-in-shell.py bash|zsh COMPLETIONS-FOLDER < texts.json       A tab in a text asks for completion.
"""
import json
import os
import pty
import re
import select
import sys
import time

shell, folder = sys.argv[1:3]
texts = json.load(sys.stdin)
READY = "\x02READY\x03"
env = {"PATH": os.environ["PATH"], "HOME": os.getcwd(), "TERM": "dumb", "LC_ALL": "C.UTF-8", "PS1": ""}
pid, master = pty.fork()
if pid == 0:
    args = ["bash", "--norc", "--noprofile", "-i"] if shell == "bash" else ["zsh", "-f", "-i"]
    os.execvpe(args[0], args, env)


def read_until(done, limit_s=60.0):
    """What is shown until `done` says so; the limit starts anew with every byte."""
    shown = ""
    last = time.monotonic()
    while not done(shown):
        if select.select([master], [], [], 0.05)[0]:
            shown += os.read(master, 65536).decode("utf-8", "replace")
            last = time.monotonic()
        elif time.monotonic() - last > limit_s:
            sys.exit(f"{shell} shows nothing more: {shown!r}")
    return shown


def run(line):
    """Runs a line; its end is known by a mark, which the echo of the line does not hold."""
    os.write(master, (line + "; printf '\\002%s\\003' READY\n").encode())
    read_until(lambda shown: READY in shown)


if shell == "bash":
    for setting in ["show-all-if-ambiguous on", "page-completions off", "completion-query-items 0", "bell-style none",
                    "enable-bracketed-paste off", "colored-stats off"]:
        run(f"bind 'set {setting}'")
    for name in sorted(os.listdir(folder)):
        run(f"source '{folder}/{name}'")
else:
    run("unsetopt beep zle_bracketed_paste 2>/dev/null; unset zle_bracketed_paste; PROMPT= RPROMPT= LISTMAX=10000")
    run(f"fpath=('{folder}' $fpath); autoload -Uz compinit && compinit -u -D; zstyle ':completion:*' list-prompt ''")
# Widget that says when everything typed so far has been dealt with: its key is the last that is typed.
if shell == "bash":
    run("""qb_say() { printf '\\n\\002LINE:%s\\003\\n' "$READLINE_LINE" ; READLINE_LINE=; READLINE_POINT=0; }; bind -x '"\\C-g": qb_say'""")
else:
    run("""qb_say() { printf '\\n\\002LINE:%s\\003\\n' "$BUFFER"; BUFFER=; zle -R }; zle -N qb_say; bindkey '^G' qb_say""")

answers = []
for text in texts:
    os.write(master, text.encode())
    os.write(master, b"\x07")
    shown = read_until(lambda s: re.search("\x02LINE:[^\x03]*\x03", s) is not None)
    line = re.search("\x02LINE:([^\x03]*)\x03", shown).group(1)
    before = shown[: shown.index("\x02LINE:")]
    answers.append({"line": line, "words": re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", before).split()})
os.write(master, b"\x04")
os.close(master)
print(json.dumps(answers))
