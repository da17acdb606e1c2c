"""
The page of a life: OUT_DIR/life.html, written from OUT_DIR/log.jsonl alone. Skip it at first.

    python -m data.page out          make it again

One file that needs nothing else: no network, no library, no picture. It folds by itself (details),
so scripts only add comfort; it can be read on a phone, printed, and without colours. Whatever the
self has said is escaped, and a policy in its head lets no script run but ours. Same log, same
bytes; less than LARGEST of them, for which long lives show fewer examples. Ours.
"""
import base64
import hashlib
import html
import json
import os
import sys

from data import flags

NAME, LOG = "life.html", "log.jsonl"
LARGEST = 990_000                   # bytes of a page
EXAMPLES = (40, 24, 12, 6, 3, 1)    # of each list; the fewer, the longer the life
MATRIX = 32                         # rows and columns of R that are shown
CLIP = 700                          # characters of a text
NONE = "\u2013"                     # where there is no number
LEAST = 0.02                        # probability of a word that is shown
ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError)     # of a log of another kind
STALE = "changed_old_value"         # a kind of question whose answer is right no more

STYLE = """
:root{--ink:#1d1d1b;--soft:#66635c;--line:#d9d5cb;--paper:#fcfbf7;--tint:#f3f0e8;--deep:#27425f}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.1rem 5rem;max-width:47rem;background:var(--paper);
color:var(--ink);font:1.03rem/1.58 Charter,"Iowan Old Style",Palatino,Georgia,"DejaVu Serif",serif;
overflow-wrap:anywhere}
h1{font-size:2.1rem;line-height:1.15;font-weight:500;letter-spacing:-.01em;margin:0 0 .4rem}
h2{font-size:1.35rem;line-height:1.25;font-weight:500;margin:2.6rem 0 .4rem}
h4{font:600 .8rem/1.4 system-ui,sans-serif;margin:1.1rem 0 .2rem}
h4:target{background:var(--ink);color:var(--paper);padding:.1rem .4rem}
p{margin:.5rem 0}.lead{font-size:1.1rem}.soft,.how,small{color:var(--soft)}
.how{font-size:.92rem;line-height:1.45;margin:.15rem 0 .8rem}
code{font:.86em ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.sum,table,svg,small,.tag,.num,.pos,button{font-family:system-ui,"Segoe UI",Roboto,"DejaVu Sans",
sans-serif;font-variant-numeric:tabular-nums}
.sum{display:flex;flex-wrap:wrap;gap:.9rem 2rem;margin:1.6rem 0}
.sum div{width:9rem;font-size:.82rem;line-height:1.35;color:var(--soft)}
.sum b{display:block;font-size:1.9rem;line-height:1.2;font-weight:500;color:var(--ink)}
.wide{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;overflow-wrap:normal;font-size:.82rem;line-height:1.35}
th{font-weight:500;color:var(--soft);text-align:right;padding:.2rem .5rem;white-space:nowrap}
td{padding:.2rem .5rem;text-align:right;white-space:nowrap}
.R td{padding:0;border:2px solid var(--paper);min-width:2.5rem;text-align:center}
.R td a,.R td span{display:block;padding:.42rem .2rem;color:inherit;text-decoration:none}
.R a:hover,.R a:focus{outline:2px solid var(--ink);outline-offset:-2px}
.R .hi{color:#fff}.dense{font-size:.66rem}.dense td{min-width:1.6rem}
.dense td a,.dense td span{padding:.26rem .1rem}.dense th{padding:.1rem .3rem}
.rows tr{border-top:1px solid var(--line)}.rows td,.rows th{padding:.2rem .38rem}
.rows tr:first-child th{white-space:normal;vertical-align:bottom}
#point{min-height:2.9em;font-size:.92rem;line-height:1.45;color:var(--soft)}
details.night{border-top:1px solid var(--ink);margin:0;padding:0}
details.night>summary{padding:.9rem 0 .8rem;font-size:1.25rem}
details.night>summary small{display:block;font-size:.84rem;line-height:1.45;padding-left:1.15em}
details.night>.in{padding:0 0 1.6rem}
details.part{border-top:1px solid var(--line)}
details.part>summary{padding:.6rem 0}
details.part>.in{padding:0 0 1.1rem 1.15em}
summary{cursor:pointer;list-style:none;display:block;line-height:1.35}
details.part>summary{padding-left:1.15em;text-indent:-1.15em}
summary::-webkit-details-marker{display:none}
summary::before{content:"+";display:inline-block;width:1.15em;text-indent:0;color:var(--soft);
font-family:ui-monospace,"DejaVu Sans Mono",monospace}
details[open]>summary::before{content:"\\2013"}
summary:focus-visible{outline:2px solid var(--deep)}
ul{list-style:none;margin:.3rem 0;padding:0}
li{margin:.42rem 0;padding-left:1.5em;text-indent:-1.5em;line-height:1.42}
li>b:first-child{display:inline-block;width:1.5em;text-indent:0;font-weight:600;
font-family:"DejaVu Sans",system-ui,sans-serif}
.no{border-left:3px solid var(--ink);padding-left:calc(1.5em + .5rem);
margin-left:calc(-.5rem - 3px)}
.a{font-style:italic}s{text-decoration-thickness:1px}
small{font-size:.78rem;white-space:normal}
.toks{line-height:2.15;margin:.7rem 0}
.tok{white-space:pre-wrap}.on{border-bottom:2.5px solid var(--ink);padding-bottom:1px}
.tag{font-size:.68rem;font-weight:600;border:1.5px solid var(--ink);border-radius:.25rem;
padding:0 .28em;margin:0 .12em;vertical-align:.28em;background:var(--paper)}
.tag.by{background:var(--ink);color:var(--paper)}
.spark{display:block;width:100%;height:3.2rem;background:var(--tint)}
.spark.low{height:1.7rem}
.spark path{fill:none;stroke:var(--ink);stroke-width:1.7;vector-effect:non-scaling-stroke}
.spark .t{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4}
.grid{display:grid;grid-template-columns:minmax(4.2rem,auto) 3.4rem minmax(3rem,1fr) 3.4rem;
gap:.35rem .7rem;
align-items:center;font-size:.92rem}
.grid .tok{background:var(--tint);padding:0 .25em;justify-self:start}
.num{text-align:right;font-size:.82rem}
.pos{text-align:right;font-size:.82rem;white-space:nowrap}
li.try{display:grid;grid-template-columns:1.5em 3.1rem 4rem 1fr;gap:0 .6rem;padding:0;text-indent:0;
align-items:baseline}
.bar{height:.62em;background:var(--ink)}
.bar.thin{background:none;border:1.5px solid var(--ink)}
button{font-size:.82rem;background:none;border:1px solid var(--soft);border-radius:.3rem;
padding:.25rem .7rem;color:inherit;cursor:pointer}
nav{margin:.6rem 0 1.2rem}nav a{color:inherit;margin-right:.9rem}
@media(max-width:30rem){body{font-size:1rem}li.try{grid-template-columns:1.3em 2.9rem 2.4rem 1fr}
h1{font-size:1.75rem}.grid{gap:.35rem .45rem}
details.part>.in{padding-left:0}.sum{gap:.8rem 1.2rem}.sum div{width:8.6rem}}
@media print{body{max-width:none;background:#fff}button,nav,#point{display:none}
.R td{border-color:#fff;-webkit-print-color-adjust:exact;print-color-adjust:exact}
li,.toks{break-inside:avoid}}
"""

SCRIPT = """
(function(){
function open(e){for(;e;e=e.parentElement)if(e.tagName==='DETAILS')e.open=true}
function go(){var e=document.getElementById(location.hash.slice(1));
if(e){open(e);e.scrollIntoView()}}
addEventListener('hashchange',go);go();
var point=document.getElementById('point');
['mouseover','focusin','click'].forEach(function(what){
document.querySelectorAll('.R td').forEach(function(td){
td.addEventListener(what,function(){if(td.title)point.textContent=td.title+'.'})})});
var all=document.getElementById('all'),opened=false;
function fold(){document.querySelectorAll('details').forEach(function(d){d.open=opened});
all.textContent=opened?'fold everything':'unfold everything'}
all.hidden=false;all.addEventListener('click',function(){opened=!opened;fold()});
addEventListener('beforeprint',function(){opened=true;fold()});
})();
"""


# --------------------------------------------------------------------------------------------------
# From a log to a page

def main(argv):
    """python -m data.page OUT_DIR: OUT_DIR/life.html anew. One line where that cannot be."""
    if len(argv) != 1 or argv[0].startswith("-"):
        flags.fail("give the folder of a life: python -m data.page out", "page.py")
    source, path = (os.path.join(argv[0], name) for name in (LOG, NAME))
    try:
        with open(source, encoding="utf-8") as f:
            text = written(parsed(f.read()))
        with open(path + ".tmp", "w", encoding="utf-8", newline="") as f:
            f.write(text)
        os.replace(path + ".tmp", path)
    except FileNotFoundError:
        flags.fail(f"no {source}: live a life first, or name its folder", "page.py")
    except OSError as e:
        flags.fail(f"{e.filename or path}: {e.strerror}", "page.py")
    except ValueError as e:
        flags.fail(f"{source}: {e}; restore it or live the life again", "page.py")
    print(path)


def parsed(log):
    """The text of log.jsonl -> [night]. Raises ValueError, naming the line, where it is none."""
    nights = []
    for n, line in enumerate(log.split("\n"), 1):
        if line.strip():
            try:
                night = json.loads(line, parse_constant=nothing)
            except (ValueError, RecursionError):
                raise ValueError(f"line {n} is no JSON") from None
            if not isinstance(night, dict) or type(night.get("night")) is not int:
                raise ValueError(f"line {n} is not the log of a night")
            nights.append(night)
    if not nights:
        raise ValueError("it holds no night")
    return nights


def nothing(name):
    """What NaN and Infinity are read as: no number."""
    return None


def written(nights):
    """[night], as from `parsed`, -> the page as text, smaller than LARGEST bytes.

    Raises ValueError where a field is not what data/diary.py writes.
    """
    choices, shown = [(nights, most) for most in EXAMPLES], nights
    while len(shown) > 1:
        shown = shown[::2]                                  # of a very long life every other night
        choices.append((shown, EXAMPLES[-1]))
    for shown, most in choices:
        if len(shown) * len(guarded_night(nights[-1], most, False)) > 2 * LARGEST:
            continue                                        # no need to try
        page = whole(nights, shown, most)
        if len(page.encode()) < LARGEST:
            break
    return page


def whole(nights, shown, most):
    """The page: R and all mornings of `nights`, and the nights `shown`, `most` examples a list."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
              "base-uri 'none'; form-action 'none'")
    try:
        parts = [beginning(nights, shown)]
    except ODD:
        raise ValueError("its numbers are not those of a life") from None
    parts += [guarded_night(night, most, night is shown[0]) for night in shown]
    if len(shown) < len(nights):
        parts.append(f'<p class="soft">{len(shown)} of {len(nights)} nights are shown.</p>')
    body = "\n".join(parts)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{heading(nights)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n")


def guarded_night(night, most, unfolded):
    """night_of, or a ValueError that names the night whose notes cannot be read."""
    try:
        return night_of(night, most, unfolded)
    except ODD:
        raise ValueError(f"the notes of night {night['night']} cannot be read") from None


# --------------------------------------------------------------------------------------------------
# Words and shapes

def safe(text, most=CLIP):
    """Any text as HTML that is nothing but text: clipped, escaped, controls made visible."""
    text = str(text)
    text = text if len(text) <= most else text[:most - 1] + "\u2026"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)


def quoted(text):
    """What a model has said, kept apart from the direction in which the page is read."""
    return f"<bdi>{safe(text)}</bdi>" if str(text).strip() else "<bdi>(nothing)</bdi>"


def percent(share):
    return NONE if share is None else f"{100 * float(share):.0f} %"


def decimal(x, digits=2):
    return NONE if x is None else f"{float(x):.{digits}f}"


def spaced(rows, most):
    """Up to `most` rows of a list, evenly spaced."""
    few = min(len(rows), most)
    return [rows[i * len(rows) // few] for i in range(few)]


def asked_and_said(question, answer):
    said = f' <span class="a">{quoted(answer)}</span>' if answer else ""
    return quoted(question) + said


def part(title, how, inside, name="", unfolded=False):
    """A folded block: a title, a sentence on what it is and who made it, and what is inside."""
    return (f'<details class="part"{f" id={name}" if name else ""}{" open" * unfolded}>'
            f'<summary>{title}</summary>\n<div class="in"><p class="how">{how}</p>\n{inside}'
            "</div></details>\n" if inside else "")


def listed(rows):
    return f"<ul>\n{''.join(rows)}</ul>\n" if rows else ""


def graded(question, said, truth, source, behind=""):
    """An answer beside the truth: a sign, and where it is wrong, both."""
    right = said == truth
    words = f'<span class="a">{quoted(said)}</span>'
    if not right:
        words = f"<s>{words}</s> \u2192 {quoted(truth)}"
    return (f'<li{"" if right else " class=no"}><b>{"&#10003;" if right else "&#10007;"}</b>'
            f"{quoted(question)} {words} <small>{safe(source)}{behind}</small></li>\n")


def curve(points, low, high, teacher=None, thin=False):
    """A line over the steps as an inline picture; dashed: the teacher's value."""
    first, last = points[0][0], points[-1][0]
    spread = (high - low) or 1.0

    def y(v):
        return round(29 - 28 * (min(max(v, low), high) - low) / spread, 1)
    drawn = [(round(200 * (n - first) / ((last - first) or 1), 1), y(v))
             for n, v in points if v is not None]
    if len(drawn) == 1:
        drawn.append((200, drawn[0][1]))
    line = "L".join(f"{a:g} {b:g}" for a, b in drawn)
    dashed = "" if teacher is None else f'<path class="t" d="M0 {y(teacher):g}H200"/>'
    return (f'<svg class="spark{" low" * thin}" viewBox="0 0 200 30" preserveAspectRatio="none" '
            f'role="img" aria-hidden="true">{dashed}<path d="M{line}"/></svg>' if drawn else "")


# --------------------------------------------------------------------------------------------------
# The whole life

def heading(nights):
    n, method = len(nights), nights[-1].get("method", "sleep")
    what = "" if method == "sleep" else f" of method {safe(method)}"
    return f"A life of {n} night{'s' * (n != 1)}{what}"


def beginning(nights, shown):
    R = [night["R"][:i + 1] for i, night in enumerate(nights) if night.get("R")]
    last = [r for r in R[-1] if r is not None] if R else []
    facts = [(sum(last) / len(last), "of what all days told is known after the last night")
             ] if last else []
    first = [n["recall"] for n in nights if n.get("recall") is not None]
    facts += [(sum(first) / len(first), "was known the morning after its day")] if first else []
    facts += [(nights[-1][k], words) for k, words in (
        ("old", "of what it was born knowing is still known"),
        ("reading", "of what a passage says is read off it")) if nights[-1].get(k) is not None]
    numbers = "".join(f"<div><b>{percent(x)}</b>{words}</div>" for x, words in facts)
    links = "".join(f'<a href="#night-{n["night"]}">{n["night"]}</a>' for n in spaced(shown, 60))
    return (f'<h1>{heading(nights)}</h1>\n<p class="lead">By day a small language model reads; '
            "what it reads stands only in its context. At night it asks itself about its day, "
            "writes the answers into its own weights and forgets the context. In the morning it "
            f'sits an exam with nothing in mind.</p>\n<div class="sum">{numbers}</div>\n'
            f"{matrix(nights, shown) if last else ''}{mornings(nights)}"
            f"<h2>Night by night</h2>\n<nav>{links}<button id=all hidden>unfold everything"
            "</button></nav>")


def matrix(nights, told):
    """R as a table one can point at: a row a morning, a column a day; the nights `told` of below
    can be followed to."""
    shown, told = spaced(range(len(nights)), MATRIX), {night["night"] for night in told}
    head = "".join(f"<th>{j + 1}</th>" for j in shown)
    body = ""
    for i in shown:
        row = nights[i].get("R") or []
        cells = "".join(cell(nights[i], j, row[j] if j < len(row) else None, told)
                        for j in shown if j <= i)
        body += f"<tr><th>night {nights[i]['night']}</th>{cells}</tr>\n"
    small = "R dense" if len(shown) > 12 else "R"
    some = "" if len(shown) == len(nights) else f" {len(shown)} of {len(nights)} are shown."
    return ("<h2>What is known of which day after which night</h2>\n"
            '<p class="how">The matrix R: rows are mornings, columns the days whose facts are '
            "asked for, numbers per cent of right answers; darker is more. Down a column is what "
            f"the nights that follow do to a day. Point at a number; follow it to what was wrong."
            f"{some} <code>sleep.examine</code></p>\n"
            f'<div class="wide"><table class="{small}"><tr><th>day</th>{head}</tr>\n{body}</table></div>'
            '\n<p id="point">Point at a number.</p>\n')


def cell(night, j, share, told):
    """One number of R: its shade, what to say when pointed at, and where its errors stand."""
    if share is None:
        return "<td></td>"
    wrong, n = (night.get("notes") or {}).get("wrong") or [], night["night"]
    title = f"After night {n}, {percent(share)} of what day {j + 1} told is known"
    inside = f"<span>{100 * share:.0f}</span>"
    if j < len(wrong):
        right = wrong[j]["n"] - wrong[j]["wrong"]
        title += f": {right:d} of {wrong[j]['n']:d} questions"
        inside = f'<a href="#m{n}-{j + 1}">{100 * share:.0f}</a>' if n in told else inside
    light = 96 - 62 * share
    return (f'<td{" class=hi" * (share > 0.7)} title="{title}" '
            f'style="background:hsl(212 38% {light:.0f}%)">{inside}</td>')


def mornings(nights):
    """What is asked every morning, and how large the nights were: a row a morning."""
    names = [k for k in ("recall", "old", "reading", "never_met")
             if any(n.get(k) is not None for n in nights)]
    titles = {"recall": "day", "old": "born with", "reading": "reading",
              "never_met": "strangers"}
    head = "".join(f"<th>{titles[k]}</th>" for k in names)
    head += "<th>asked</th><th>kept</th><th>known</th>" if any("kept" in n for n in nights) else ""
    rows = ""
    for n in spaced(nights, MATRIX):
        cells = "".join(f"<td>{percent(n.get(k))}</td>" for k in names)
        if "asked" in head:
            cells += "".join(f"<td>{safe(n.get(k, NONE))}</td>" for k in ("dreamt", "kept"))
            cells += f"<td>{percent(n.get('known'))}</td>"
        rows += f"<tr><th>morning {n['night']}</th>{cells}</tr>\n"
    return ("<h2>Every morning</h2>\n<p class=\"how\">Shares of right answers: about yesterday, "
            "about what the base knew, about a passage in front of it, and of strangers of whom it "
            "should say that it does not know; how many questions it asked itself that night, how "
            "many quizzes it kept, and how many of them it knew before the exam. "
            f'<code>sleep.remember_morning</code></p>\n<div class="wide"><table class="rows">'
            f"<tr><th></th>{head}</tr>\n{rows}</table></div>\n")


# --------------------------------------------------------------------------------------------------
# One night

def night_of(night, most, unfolded):
    """A night as a folded block of blocks; of one without notes, its numbers."""
    n, noted = night["night"], night.get("notes") or {}
    blocks = [read(noted, night, most), asked(noted, most), kept(noted, most),
              dropped(noted, most), watched(noted, unfolded), losses(noted),
              rollouts(noted, most), dreams(noted, most), old(noted, most), again(noted, most),
              gates(noted, most, unfolded), exam(noted, most), earlier(noted, n, most),
              always(noted, most)]
    inside = "".join(blocks) or f'<p class="soft">No notes of this night. {numbers(night)}</p>'
    return (f'<details class="night" id="night-{n}"{" open" * unfolded}><summary>Night {n}'
            f"<small>{summary_of(night, noted)}</small></summary>\n"
            f'<div class="in">\n{inside}</div></details>')


def summary_of(night, noted):
    """The night in one line."""
    if "undone" in night:
        return (f"undone: {safe(night['undone'])}. It woke as the evening before; the day stays in "
                "its context.")
    words = []
    if noted.get("passages"):
        words.append(f"{len(noted['passages'])} passages read")
    if night.get("dreamt") is not None:
        words.append(f"{night['dreamt']:d} questions asked")
    if night.get("kept") is not None:
        words.append(f"{night['kept']:d} quizzes learnt")
    if night.get("cycles"):
        words.append(f"in {night['cycles']:d} cycles")
    for move in night.get("moves") or []:
        words.append(f"level {move['level']:d} " + ("stays: the move was undone"
                     if "undone" in move else "moved into the next slower one"))
    if night.get("recall") is not None:
        words.append(f"next morning {percent(night['recall'])}")
    return " \u00b7 ".join(words)


def numbers(night):
    """All numbers in the log of a night, as words."""
    found = [f"{safe(k)} {v:.4g}" for k, v in night.items()
             if type(v) in (int, float) and k != "night"]
    return ", ".join(found)


def read(noted, night, most):
    lost, rows = night.get("lost") or [], []
    for i, p in enumerate(noted.get("passages") or []):
        times = p["tried"]
        tried = f"tried {times:d} time{'s' * (times != 1)} before" if times else ""
        left = "not learnt, stays in the context" if i in lost else ""
        marks = " \u00b7 ".join(x for x in (tried, left) if x)
        rows.append(f"<li{' class=no' if left else ''}><b>{i + 1}</b>{quoted(p['text'])} "
                    f"<small>{marks}</small></li>\n")
    return part(f"What it read: {len(rows)} passages", "The day, as it stands in the context; what "
                "an earlier night could not learn comes first. Of a data set of topics a passage "
                "is the name of one. <code>sleep.wake</code>", listed(spaced(rows, most)))


def asked(noted, most):
    some = noted.get("asked") or {"n": 0, "some": []}
    rows = [f"<li><b>?</b>{asked_and_said(q, y)}</li>\n" for q, y in spaced(some["some"], most)]
    return part(f"What it asked itself: {some['n']:d} questions", "With a sentence of the day in "
                "mind it writes questions and answers, as they come; nobody else asks. "
                f"{len(rows)} of them. <code>dream.write</code>", listed(rows))


def kept(noted, most):
    some = noted.get("kept") or {"n": 0, "some": []}
    untold = " \u00b7 not told today: as yesterday's self says"
    rows = [graded(q, said, y, source, untold if recalled else "")
            for q, y, said, source, recalled in spaced(some["some"], most)]
    return part(f"Quizzes it kept: {some['n']:d}", "What it learns tonight: each question with the "
                "answer of the self that holds the day. The sign says whether the new self, asked "
                "at the end of the night with nothing in mind, gives that answer, and from where; "
                f"{len(rows)} of them. <code>asking.ask_everything</code>, "
                "<code>asking.look_back</code>", listed(rows))


def dropped(noted, most):
    reasons, inside = noted.get("dropped") or [], ""
    for reason in reasons:
        rows = [f"<li><b>\u2013</b>{asked_and_said(q, y)}</li>\n"
                for q, y in spaced(reason["some"], most)]
        inside += f"<h4>{safe(reason['why'])}: {reason['n']:d}</h4>\n{listed(rows)}"
    total = sum(reason["n"] for reason in reasons)
    return part(f"Quizzes it dropped, and why: {total:d}", "Nobody tells it what is true; it goes "
                "by what the day makes likely, by how sure it is and by whether its own answers "
                "agree. <code>asking.screen</code>, <code>asking.sensible</code>, "
                "<code>asking.agreed</code>, <code>asking.look_up</code>, "
                "<code>gate.open_gate</code>", inside)


def watched(noted, unfolded):
    inside = ""
    for w in noted.get("watched") or []:
        steps = [row[0] for row in w["student"]]
        rows = ('<span class="soft">next word</span><small class="num">teacher</small>'
                f'<small>student, steps {steps[0]:d} to {steps[-1]:d}</small>'
                '<small class="num">end</small>')
        for i, word in enumerate(w["words"]):
            points = [(row[0], row[i + 1]) for row in w["student"]]
            if i > 1 and max([w["teacher"][i] or 0, *(p or 0 for _, p in points)]) < LEAST:
                continue
            rows += (f'<span class="tok">{quoted(word)}</span>'
                     f'<span class="num">{decimal(w["teacher"][i])}</span>'
                     f'{curve(points, 0.0, 1.0, w["teacher"][i], thin=True) or "<i></i>"}'
                     f'<span class="num">{decimal(points[-1][1])}</span>')
        before = f" {quoted(w['before'])}" if w["before"] else ""
        inside += (f'<p>{quoted(w["question"])} <span class="a">{before} <span class="tag">?</span>'
                   f'</span></p>\n<div class="grid">{rows}</div>\n')
    return part("One answer being learnt", "The next word of one answer, for which teacher (the "
                "self that holds the day) and student (the same self without it) differed most: "
                "the probability the student gives to each word, over the steps; dashed, what the "
                "teacher gives. <code>seed.divergence</code>, <code>seed.distil</code>", inside,
                unfolded=unfolded)


def losses(noted):
    names = {"loss": "distance from the teacher's answers to its own quizzes, nats a token",
             "kl": "divergence on what the student says itself, nats a token",
             "reward": "reward of the student's own answers",
             "spread": "spread of rewards over the tries at one question"}
    inside = ""
    for name, points in (noted.get("losses") or {}).items():
        values = [v for _, v in points if v is not None]
        if values:
            drawn = curve(points, min(0.0, *values), max(values))
            inside += (f"<h4>{safe(name)}</h4><small>{safe(names.get(name, ''))}: from "
                       f"{decimal(points[0][1])} to {decimal(points[-1][1])}, highest "
                       f"{decimal(max(values))}, steps {points[0][0]:d} to {points[-1][0]:d}"
                       f"</small>{drawn}\n")
    return part("The losses", "Means over some steps each; the lower edge is zero. In a night "
                "that tries dreams the last few steps come after them. <code>seed.distil</code>, "
                "<code>seed.off_policy_loss</code>, <code>seed.on_policy_loss</code>", inside)


def rollouts(noted, most):
    inside = ""
    for r in spaced(noted.get("rollouts") or [], most):
        rows = [f'<li class="try"><b>{"&#10003;" if text == r["right"] else "&#10007;"}</b>'
                f'<span class="pos">{decimal(reward)}</span>{bar(reward)}'
                f'<span class="a">{quoted(text)}</span></li>\n'
                for text, reward in r["tries"]]
        inside += (f'<h4>{quoted(r["question"])}</h4><small>the teacher: {quoted(r["right"])}'
                   f"</small>\n{listed(rows)}")
    return part("Answers it tried, and their rewards", "The student answers as it would, several "
                "times; half of the reward is for being close to the teacher's words, half for "
                "words the teacher would have said. Shown are questions whose tries differ most. "
                "<code>seed.on_policy_loss</code>, <code>seed.rewards</code>", inside)


def bar(share, thin=False):
    """A bar as long as its share of the room for it."""
    width = 100 * min(1.0, max(0.0, float(share or 0)))
    return f'<span class="bar{" thin" * thin}" style="width:{width:.0f}%"></span>'


def dreams(noted, most):
    found = noted.get("dreams") or []
    best = max([abs(g) for _, _, g, _ in found if g is not None], default=0) or 1.0
    rows = []
    for q, y, gain, paid in spaced(found, most):
        sign = "+" if (gain or 0) >= 0 else "\u2212"
        rows.append(f'<li class="try"><b>{"&#9733;" if paid else "&#9734;"}</b>'
                    f'<span class="pos">{sign}{decimal(abs(gain or 0), 3)}</span>'
                    f"{bar(abs(gain or 0) / best, not paid)}"
                    f"<span>{asked_and_said(q, y)}</span></li>\n")
    paid = sum(bool(row[3]) for row in found)
    return part(f"Dreams tried on copies: {paid} of {len(found)} paid", "Each dream is learnt by a "
                "throw-away copy of the self; its worth is what the copy gains on a quiz of "
                "tonight, in nats a token. A full star: more than the average of the night, so the "
                "writer of dreams learns to dream more like it. <code>dream.trials</code>, "
                "<code>dream.rest_em</code>", listed(rows))


def old(noted, most):
    found = noted.get("old") or []
    changed = sum(was != now for _, was, now, _ in found)
    rows = [graded(q, now, was, source) for q, was, now, source in spaced(found, most)]
    return part(f"Old things it dreamt of: {changed} of {len(found)} shown changed", "Out of the "
                "blue it asks itself questions, as before its day, and compares what it says now "
                "with what it said in the evening (behind the arrow, where they differ). A night "
                "that changes too much is undone. <code>dream.questions</code>, "
                "<code>asking.look_back</code>", listed(rows))


def again(noted, most):
    rows = [f"<li><b>?</b>{asked_and_said(q, y)} <small>{safe(who)}</small></li>\n"
            for who, q, y in spaced(noted.get("again") or [], most)]
    return part("Older memories it dreamt again", "The memories of a level that moves speak of their "
                "own nights; one expert of the next slower level learns all of it. "
                "<code>dream.memories</code>, <code>seed.consolidate</code>", listed(rows))


# --------------------------------------------------------------------------------------------------
# One morning

def gates(noted, most, unfolded):
    inside = "".join(sentence(x) for x in spaced(noted.get("opens") or [], most))
    return part("Where in a question the gate opens", "Questions of the exam, word piece by word "
                "piece. A boxed number is a memory (an expert) that wakes at this piece: the "
                "question has come near a thing of its night. Filled: the memory that answers, "
                "underlined what it hears awake; one that does not know passes the question on. "
                "<code>gate.listen</code>, <code>gate.remember</code>", inside, unfolded=unfolded)


def sentence(x):
    """A question with the places where memories wake."""
    words, on, by = "", False, x["source"]
    for i in range(len(x["tokens"]) + 1):
        here = [who for at, who in x["wakes"] if at == i]
        words += "".join(f'<span class="tag{" by" * (who == by)}">{short(who)}</span>'
                         for who in here)
        on = on or by in here
        if i < len(x["tokens"]):
            piece = x["tokens"][i] if i else x["tokens"][i].lstrip()
            words += f'<span class="tok{" on" * on}">{safe(piece)}</span>'
    right = x["said"] == x["truth"]
    said = f'<span class="a">{quoted(x["said"])}</span>'
    said = said if right else f"<s>{said}</s> \u2192 {quoted(x['truth'])}"
    return (f'<p class="toks">{words} {"&#10003;" if right else "&#10007;"} {said} '
            f"<small>{safe(by)}</small></p>\n")


def short(who):
    """memory 3 -> 3, slow memory 1 -> slow 1."""
    return safe(str(who).replace("memory ", ""))


def exam(noted, most):
    """Today's exam, kind by kind: errors first."""
    found, kinds, inside = noted.get("exam") or [], {}, ""
    for kind, *row in found:
        kinds.setdefault(kind, []).append(row)
    gone = kinds.pop(STALE, [])
    for kind, rows in kinds.items():
        right = sum(said == truth for _, said, truth, *_ in rows)
        first = [r for r in rows if r[1] != r[2]] + [r for r in rows if r[1] == r[2]]
        inside += (f"<h4>{safe(kind.replace('_', ' '))}: {right} of {len(rows)}</h4>\n"
                   + listed([graded(q, said, truth, source, passage_before(context))
                             for q, said, truth, source, context in first[:most]]))
    inside += stale(gone, most)
    asked_ = sum(kinds.values(), [])
    right = sum(said == truth for _, said, truth, *_ in asked_)
    return part(f"The exam about this day: {right} of {len(asked_)}", "In the morning, nothing in "
                "mind, in wordings that it has never read; by kind of question, errors first, "
                "with the truth behind an arrow, and where the answer came from (base: the "
                "pretrained self, no memory). R counts only some kinds. <code>exam.sit</code>", inside)


def stale(rows, most):
    """What is said where something has changed since: the old value should be said no more."""
    still = sum(said == was for _, said, was, *_ in rows)
    items = [f"<li><b>{'&#10007;' if said == was else '&#8211;'}</b>{asked_and_said(q, said)} "
             f"<small>before: {quoted(was)}</small></li>\n" for q, said, was, *_ in rows[:most]]
    return (f"<h4>what it was before, still said: {still} of {len(rows)}</h4>\n{listed(items)}"
            if rows else "")


def passage_before(context):
    return f" \u00b7 had just read: {quoted(context)}" if context else ""


def earlier(noted, n, most):
    """What R counts of every day's exam: the errors, where the matrix points to."""
    inside = ""
    for j, day in enumerate(noted.get("wrong") or []):
        if not day["n"]:
            continue                                        # a day without an exam
        if not day["wrong"]:
            inside += f'<h4 id="m{n}-{j + 1}">day {j + 1}: all of {day["n"]:d}</h4>'
            continue
        rows = [graded(*row) for row in spaced(day["some"], most)]
        inside += (f'<h4 id="m{n}-{j + 1}">day {j + 1}: {day["n"] - day["wrong"]:d} of '
                   f'{day["n"]:d}</h4>\n{listed(rows)}')
    return part("All days after this night, and what was wrong", "A row of R: the exam of every "
                "day so far, as far as it is still true. <code>sleep.examine</code>, "
                "<code>exam.share</code>", inside)


def always(noted, most):
    inside = ""
    for kind, row in (noted.get("always") or {}).items():
        rows = [graded(*x) for x in spaced(row["some"], most)]
        inside += (f"<h4>{safe(kind.replace('_', ' '))}: {row['n'] - row['wrong']:d} of "
                   f"{row['n']:d}</h4>\n{listed(rows) or '<small>nothing wrong</small>'}")
    return part("What is asked every morning, and what was wrong", "What the self was born "
                "knowing, a passage in front of it, and strangers nobody has told it of. "
                "<code>exam.sit</code>", inside)


if __name__ == "__main__":
    main(sys.argv[1:])
