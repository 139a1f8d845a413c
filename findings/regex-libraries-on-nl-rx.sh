#!/usr/bin/env bash
# greenery 4.2.3, interegular 0.3.3, automata-lib 9.2.0, pyformlang 1.0.11 (seen November 2026): the regular expressions of NL-RX
# have & (both sides match), ~ (it does not match) and \b. Each library's parser reads them in a way of its own, mostly
# without an error: & and ~ as characters that are matched, automata-lib \b as a backspace. So a judge made with one of them calls answers
# different that are the same, and says nothing; automata and greenery's Python operators do have intersection and complement.
#
# Output seen (does the expression match the text?):
#   (a.*)&(.*b) on "ab", which NL-RX matches: greenery no, interegular no, automata-lib yes, pyformlang no
#   ~(a) on "b", which NL-RX matches: greenery no, interegular no, automata-lib no, pyformlang no
#   ~(a) on "~a", which NL-RX matches: greenery yes, interegular yes, automata-lib yes, pyformlang yes
#   \bab on "ab", which NL-RX matches: greenery NoMatch, interegular Unsupported, automata-lib no, pyformlang yes
#   \bab on a backspace and "ab", which it does not: greenery NoMatch, interegular Unsupported, automata-lib yes, pyformlang no
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check greenery==4.2.3 interegular==0.3.3 automata-lib==9.2.0 pyformlang==1.0.11
cat > "$folder/match.py" <<'PY'
import greenery
import interegular
from automata.fa.nfa import NFA
from pyformlang.regular_expression import PythonRegex

MATCHES = {
    "greenery": lambda pattern, text: greenery.parse(pattern).matches(text),
    "interegular": lambda pattern, text: interegular.parse_pattern(pattern).to_fsm().accepts(text),
    "automata-lib": lambda pattern, text: NFA.from_regex(pattern, input_symbols=set("ab~&\\\b")).accepts_input(text),
    "pyformlang": lambda pattern, text: PythonRegex(pattern).accepts(list(text)),
}


def told(matches, pattern, text):
    try:
        return "yes" if matches(pattern, text) else "no"
    except Exception as error:
        return type(error).__name__


for pattern, text, said in (
    ("(a.*)&(.*b)", "ab", '"ab", which NL-RX matches'),
    ("~(a)", "b", '"b", which NL-RX matches'),
    ("~(a)", "~a", '"~a", which NL-RX matches'),
    (r"\bab", "ab", '"ab", which NL-RX matches'),
    (r"\bab", "\bab", 'a backspace and "ab", which it does not'),
):
    print(f"{pattern} on {said}:", ", ".join(f"{name} {told(matches, pattern, text)}" for name, matches in MATCHES.items()))
PY
"$folder/venv/bin/python" "$folder/match.py" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
(a.*)&(.*b) on "ab", which NL-RX matches: greenery no, interegular no, automata-lib yes, pyformlang no
~(a) on "b", which NL-RX matches: greenery no, interegular no, automata-lib no, pyformlang no
~(a) on "~a", which NL-RX matches: greenery yes, interegular yes, automata-lib yes, pyformlang yes
\bab on "ab", which NL-RX matches: greenery NoMatch, interegular Unsupported, automata-lib no, pyformlang yes
\bab on a backspace and "ab", which it does not: greenery NoMatch, interegular Unsupported, automata-lib yes, pyformlang no
EXPECTED
