"""The verifier `constraints`: each kind by hand, with near misses, and gates against gibberish."""

import json

import pytest
from harness_plugins.verifiers.constraint_kinds import KINDS, words_of
from harness_plugins.verifiers.constraints import Constraints
from harness_plugins.verifiers.sense import Sense

from harness import make_verifier, verdicts
from harness.core.data import Prompt
from harness.core.errors import UsageError


def share(text, *constraints, ended=True, **options):
    verifier = Constraints(**options)
    gold = verifier.read_gold(json.dumps(constraints))
    return verifier.verify([None], [text], [gold], [ended])[0]


def kind(name, **needs):
    return {"kind": name, **needs}


INCLUDE = kind("include", words=["river"])
TWICE = kind("include", words=["old"], at_least=2)
TWO_WORDS = kind("include", words=["river", "ice cream"])
BEGIN = kind("begin", text="In short")
END = kind("end", text="good night")
FOUR = kind("words", at_least=4, at_most=4)
MOST = kind("words", at_most=3)
ITEMS = kind("items", at_least=2, at_most=2)
JSON = kind("json", keys=["name", "use"])
CASES = [
    (INCLUDE, "The River is old.", 1),
    (INCLUDE, "**river**", 1),
    (INCLUDE, "a river's bank", 0),  # another word
    (INCLUDE, "rivers", 0),
    (INCLUDE, "a river-boat", 0),
    (INCLUDE, "riv er", 0),
    (INCLUDE, "r\u0131ver", 0),  # dotless i
    (TWICE, "old and OLD", 1),
    (TWICE, "old old", 1),
    (TWICE, "old and older", 0),
    (TWO_WORDS, "ice cream at the river", 1),
    (TWO_WORDS, "ice, cream at the river", 1),
    (TWO_WORDS, "cream ice at the river", 0),
    (kind("include", words=["caf\u00e9"]), "the cafe\u0301", 1),  # the accent stands apart
    (kind("include", words=["don't"]), "I don\u2019t", 1),
    (kind("exclude", words=["river"]), "Rivers run.", 1),
    (kind("exclude", words=["river"]), "The RIVER runs.", 0),
    (kind("about", any=["dog", "dogs"]), "My dog.", 1),
    (kind("about", any=["dog", "dogs"]), "My dogma.", 0),
    (BEGIN, "In short, yes.", 1),
    (BEGIN, '  "in SHORT": yes', 1),
    (BEGIN, "**In short**", 1),
    (BEGIN, "Well, in short", 0),
    (BEGIN, "In shorts", 0),
    (BEGIN, "In", 0),
    (END, "I wish you a good night!", 1),
    (END, 'a "Good night."', 1),
    (END, "a good night \u2014\n", 1),
    (END, "a good night to you", 0),
    (END, "good knight", 0),
    (FOUR, "one two three four", 1),
    (FOUR, "A well-known 3.5 km", 1),  # a hyphen and a point join
    (FOUR, "one - two three four", 1),  # a dash is no word
    (FOUR, "don't count 1,000 twice", 1),
    (FOUR, "one,two three four", 1),
    (FOUR, "one two three", 0),
    (FOUR, "one two three four five", 0),
    (
        FOUR,
        "\u0915\u093f\u0924\u093e\u092c \u092c\u0939\u0941\u0924 \u0905\u091a\u094d\u091b\u0940"
        " \u0939\u0948",
        1,
    ),
    (MOST, "a b c", 1),
    (MOST, "a b c d", 0),
    (MOST, "", 0),
    (MOST, "...", 0),
    (ITEMS, "- a\n- b", 1),
    (ITEMS, "Two:\n1. red\n2) blue\nDone.", 1),
    (ITEMS, "* a\n\u2022 b", 1),
    (ITEMS, "- a\n- b\n- c", 0),
    (ITEMS, "- a\n-", 0),
    (ITEMS, "-a\n-b", 0),
    (ITEMS, "a - b\nc - d", 0),
    (ITEMS, "1.5 m\n2.5 m", 0),
    (kind("lower"), "all is low, 3 times. \u00e9!", 1),
    (kind("lower"), "all is Low", 0),
    (kind("lower"), "\u00c9t\u00e9", 0),
    (kind("lower"), "123", 0),
    (kind("upper"), "ALL IS HIGH", 1),
    (kind("upper"), "ALL IS HIGh", 0),
    (kind("no_commas"), "no; comma", 1),
    (kind("no_commas"), "a, b", 0),
    (kind("no_commas"), "a\uff0cb", 0),
    (kind("no_commas"), "a\u3001b", 0),
    (kind("no_commas"), "", 0),
    (kind("question"), "Is it?", 1),
    (kind("question"), 'Is it late?"**\n', 1),
    (kind("question"), "\u662f\u5417\uff1f", 1),
    (kind("question"), "Is it? Yes.", 0),
    (kind("question"), "Is it", 0),
    (kind("question"), "?", 0),
    (JSON, '{"name": "a", "use": "b"}', 1),
    (JSON, '\n```json\n{"name": "a", "use": ["b"], "more": 1}\n```\n', 1),
    (JSON, '```\n{"name": "a", "use": 0}\n```', 1),
    (JSON, 'Here it is: {"name": "a", "use": "b"}', 0),
    (JSON, '{"name": "a", "use": "b"} It is done.', 0),
    (JSON, '{"name": "a"}', 0),
    (JSON, '{"name": "a", "use": ""}', 0),
    (JSON, '{"Name": "a", "use": "b"}', 0),
    (JSON, "{'name': 'a', 'use': 'b'}", 0),
    (JSON, '{"name": "a", "use": "b",}', 0),
    (JSON, '{"name": "a", "use": NaN}', 0),
    (JSON, '{"name": "a", "name": "c", "use": "b"}', 0),
    (JSON, '[{"name": "a", "use": "b"}]', 0),
    (JSON, '```json\n{"name": "a", "use": "b"}', 0),
    (JSON, '{"name": "a", "use": "b"', 0),
    (JSON, '{"name": ' * 10_000, 0),
    (JSON, '{"name": ' + "9" * 5000 + ', "use": 1}', 0),
]


@pytest.mark.parametrize("constraint, text, kept", CASES)
def test_each_kind_with_near_misses(constraint, text, kept):
    assert share(text, constraint) == kept


def test_every_kind_has_cases_of_both_verdicts():
    seen = {(constraint["kind"], kept) for constraint, _, kept in CASES}
    assert seen == {(name, kept) for name in KINDS for kept in (0, 1)}


def test_words_are_counted_as_people_count_them():
    assert words_of("A well-known 3.5 km, don\u2019t! \u2013 #1_2") == [
        *("a", "well-known", "3.5", "km", "don't", "1", "2")
    ]


def test_grade_is_the_share_kept_or_all_or_nothing():
    text = "the old river, again"
    assert share(text, INCLUDE, kind("lower"), kind("no_commas"), MOST) == 0.5
    assert share(text, INCLUDE, kind("no_commas"), graded=False) == 0.0
    assert share(text, INCLUDE, kind("lower"), graded=False) == 1.0


def test_required_constraint_has_no_share_and_no_mercy():
    about = kind("about", any=["dog"], required=True)
    assert share("my dog", about, INCLUDE, kind("lower")) == 0.5
    assert share("a river", about, INCLUDE, kind("lower")) == 0.0


def test_cut_answer_keeps_nothing_or_what_needs_no_end():
    assert share("a river", INCLUDE, ended=False) == 0.0
    assert share("a river", INCLUDE, ended=False, must_end=False) == 1.0
    for constraint, text, kept in CASES:
        if kept and KINDS[constraint["kind"]].whole:
            assert share(text, constraint, ended=False, must_end=False) == 0.0


def test_no_answer_keeps_nothing():
    for text in ("", " \n", "!?", "\u200b", "a" * 20_001):
        assert share(text, kind("no_commas"), kind("exclude", words=["x"])) == 0.0


def test_constraints_of_every_row_need_no_gold_answer():
    verifier = make_verifier("constraints", {"constraints": [kind("lower")]})
    asked = [Prompt(str(i), "p", verifier.read_gold("whatever")) for i in range(2)]
    assert verdicts(verifier, asked, ["low", "High"], [True, True]).values == [1.0, 0.0]
    assert make_verifier("constraints").verify([None], ["a"], [None], [True]) == [None]


@pytest.mark.parametrize(
    "tables, why",
    [
        ("[]", "1 to 20 constraints"),
        ("three words", "is no JSON list"),
        ('[{"kind": "rhyme"}]', "kind is one of include"),
        ('[{"kind": "include"}]', "include has words, at_least"),
        ('[{"kind": "lower", "words": ["a"]}]', "lower has no values"),
        ('[{"kind": "include", "words": []}]', "a list of texts with a word in it"),
        ('[{"kind": "include", "words": "river"}]', "a list of texts"),
        ('[{"kind": "begin", "text": "..."}]', "a text with a word in it"),
        ('[{"kind": "words"}]', "give at_least, at_most"),
        ('[{"kind": "words", "at_least": 5, "at_most": 4}]', "give at_least, at_most"),
        ('[{"kind": "words", "at_most": 0}]', "a whole number above 0"),
        ('[{"kind": "words", "at_most": true}]', "a whole number above 0"),
        ('[{"kind": "lower", "required": 1}]', "required is true or false"),
        ('[{"kind": "lower", "required": true}]', "none is left to grade"),
    ],
)
def test_constraints_that_cannot_be_read_are_refused(tables, why):
    with pytest.raises(ValueError, match=why):
        Constraints().read_gold(tables)
    if "JSON" not in why:
        with pytest.raises(UsageError, match="verifier constraints: "):
            own = json.loads(tables)
            make_verifier("constraints", {"constraints": own or [{}]})


# -- gibberish that keeps constraints --------------------------------------------------------------

SENSIBLE = [
    "The river is old, and its water is cold.",
    "people like tea.",
    '{"name": "Ann Smith", "hobby": "she paints old boats"}',
    "- fresh bread\n- a glass of milk\n- two eggs",
    "I don't know. It's 3 o'clock, isn't it?",
    "Dr. Watson met NASA's crew in Texas; he said \u201cwow!\u201d\n\n1. Eat\n2. Sleep",
    "No, no, it is a very, very good day...",
]
GIBBERISH = [
    "",
    "river",
    "river river river river",
    "lower lower case lower case lower case lower case lower case lower case lower",
    "xq zvk wpt river bnm qqd",
    "th3 r1v3r",
    "river! !!!! !!!! is old",
    "the rrrrriver is looooong",
    "riverIsOld andTheWater isCold",
    "-,-,-,-,-,-,-,-,-,-,-,- a river is old",
    "\u0441\u0442\u0430\u0440\u0430\u044f \u0440\u0435\u043a\u0430 \u0442\u0435\u0447\u0435\u0442",
    "a b c d e f g",
    "the old the old the old the old the old river",
]


@pytest.mark.parametrize("text", SENSIBLE)
def test_language_clears_the_bar(text):
    assert Sense().fault(text) is None


@pytest.mark.parametrize("text", GIBBERISH)
def test_gibberish_does_not(text):
    assert Sense().fault(text)


def test_gibberish_that_keeps_all_constraints_is_worth_nothing():
    parts = [{"name": "constraints"}, {"name": "sense", "gate": True}]
    verifier = make_verifier("", {}, parts)
    gold = verifier.read_gold(json.dumps([INCLUDE, kind("lower")]))
    texts = ["the river is old.", *(text for text in GIBBERISH if "river" in text)]
    found = verdicts(verifier, [Prompt("p", "p", gold)] * len(texts), texts, [True] * len(texts))
    assert found.values == [1.0, *[0.0] * (len(texts) - 1)]
    assert found.parts["constraints"][1:5] == [1.0] * 4 and set(found.parts["sense"][1:]) == {0.0}


def test_bar_reads_other_languages_on_request():
    assert Sense(english=False).fault(GIBBERISH[10]) is None


@pytest.mark.parametrize("options", [{"least_words": 0}, {"most_strange": 2}])
def test_limits_that_make_no_sense(options):
    with pytest.raises(UsageError, match="verifier sense: "):
        make_verifier("sense", options)
