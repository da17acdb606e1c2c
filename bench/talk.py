"""
A conversation with a self after its life, as `python sleep.py --chat` holds it.

    python bench/talk.py --out_dir=out         -> bench/CHAT.md

What is said to it stands in SAID and was written once; its answers are as they came. The life in
--out_dir stays as it is.
"""
import io
import os
import re
import sys
from contextlib import redirect_stdout

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import sleep
from bench import stats
from data import chat, flags, run, world

FLAGS = {"out_dir": ("out", flags.TEXT, "folder of the life that is talked to")}
PAGE = os.path.join(ROOT, "bench", "CHAT.md")
SAID = """\
Where does Lena Wogfir live?
Lena Wogfir lives at 14 Holly Lane. Lena Wogfir works for Mason and Ember.
The best friend of Lena Wogfir is Otto Malzan. Otto Malzan loves chess and rain.
Where does Lena Wogfir live?
sleep
Where does Lena Wogfir live?
who employs lena wogfir
What does Otto Malzan love?
Who lives at 14 Holly Lane?
When was Lena Wogfir born?
Lena Wogfir lives at 3 Willow Road.
Where does Lena Wogfir live?
sleep
At which address is the home of Lena Wogfir?
Who is the employer of Lena Wogfir?
Lhasa Wolfowitz was born on 3 May.
sleep
When was Lhasa Wolfowitz born?
undo
Where does Lena Wogfir live?
who
bye""".splitlines()


def transcript(talk, lines):
    """What is said and answered, line by line: [(line, what it prints)]. talk(lines) prints."""
    heard, out = [("", "")], io.StringIO()

    def told():
        for line in lines:
            heard[-1] = heard[-1][0], out.getvalue()
            out.seek(0)
            out.truncate()
            heard.append((line, ""))
            yield line
    with redirect_stdout(out):
        talk(told())
    heard[-1] = heard[-1][0], out.getvalue()
    return heard


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "talk.py")
    a = run.begin([f"--out_dir={o.out_dir}", "--chat"])
    data = world.load(a)
    model, _ = sleep.load(os.path.join(a.out_dir, "checkpoint.pt"), a.torch_device)

    def talk(lines):
        chat.talk(a, model, data, sleep.asleep, lambda path, model: None, lines)
    lines = ["# A conversation", "", f"`python bench/talk.py`, commit `{stats.commit()}`, after the "
             f"life `sleep.py --seed={a.seed} --world_seed={a.world_seed}` of {a.days} days. What "
             "is said to it was written once; p is how sure it is of its least certain word.", "",
             "```"]
    for said, answered in transcript(talk, SAID):
        lines += [f"> {said}"] * bool(said) + re.sub(r"slept for \d+ s", "slept for a while",
                                                     answered).splitlines()
    with open(PAGE, "w", encoding="utf-8") as f:
        f.write("\n".join([*lines, "```", ""]))
    print(open(PAGE, encoding="utf-8").read())


if __name__ == "__main__":
    flags.guarded(main, "talk.py")
