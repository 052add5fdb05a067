"""Public layouts of preference data: each becomes a prompt and answers, or is refused with why."""

import json

import pytest
from harness_suites.columns import Columns
from harness_suites.layouts import read_row
from harness_suites.preference_file import PreferenceFile

from harness.core.data import Demonstration, Labelled, Pair, message_text
from harness.core.errors import UsageError
from harness.core.options import build


def m(role, content, **more):
    return {"role": role, "content": content, **more}


def s(speaker, value):
    return {"from": speaker, "value": value}


USER, GOOD, BAD = m("user", "which way?"), m("assistant", "north"), m("assistant", "up")
SYSTEM = m("system", "be brief")
PAIR = ([USER], [GOOD], [BAD])
TEXT = ("which way?", "north", "up")
LONGER = [USER, m("assistant", "north"), m("user", "and now?")]
HH = "\n\nHuman: which way?\n\nAssistant: north\n\nHuman: and now?\n\nAssistant:"
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
CALLING = m("assistant", None, tool_calls=[CALL])


def read(row, **columns):
    return read_row(row, Columns(**columns))


def pairs(row, **columns):
    found = read(row, **columns)
    assert all(isinstance(example, Pair) for example in found)
    return [(example.prompt.text, example.chosen, example.rejected) for example in found]


# -- chosen and rejected ---------------------------------------------------------------------------

PAIRS = {
    "text": ({"prompt": "which way?", "chosen": "north", "rejected": "up"}, TEXT),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
    "ultrafeedback": (
        {"prompt": "which way?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": []},
        PAIR,
    ),
    "ultrafeedback with all its columns": (
        {
            "prompt": "which way?",
            "prompt_id": "f0",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 8.5,
        },
        PAIR,
    ),
    "ultrafeedback with a system message": (
        {
            "prompt": "which way?",
            "chosen": [SYSTEM, USER, GOOD],
            "rejected": [SYSTEM, USER, BAD],
        },
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "several turns beside the first question": (
        {"prompt": "which way?", "chosen": [*LONGER, GOOD], "rejected": [*LONGER, BAD]},
        (LONGER, [GOOD], [BAD]),
    ),
    "several turns beside the last question": (
        {"prompt": "and now?", "chosen": [*LONGER, GOOD], "rejected": [*LONGER, BAD]},
        (LONGER, [GOOD], [BAD]),
    ),
    "a question beside answers": (
        {"prompt": "which way?", "chosen": [GOOD], "rejected": [BAD]},
        PAIR,
    ),
    "a list beside whole conversations": (
        {"prompt": LONGER, "chosen": [*LONGER, GOOD], "rejected": [*LONGER, BAD]},
        (LONGER, [GOOD], [BAD]),
    ),
    "a list with a system that the answers leave out": (
        {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "a list beside texts": ({"prompt": [USER], "chosen": "north", "rejected": " up"}, PAIR),
    "a conversation beside a text": (
        {"prompt": "which way?", "chosen": [USER, GOOD], "rejected": "up"},
        PAIR,
    ),
    "a text beside a conversation": (
        {"prompt": "which way?", "chosen": "north", "rejected": [BAD]},
        PAIR,
    ),
    "one message that is no list": ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, PAIR),
    "implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
    "implicit with turns": (
        {"chosen": [SYSTEM, *LONGER, GOOD], "rejected": [SYSTEM, *LONGER, BAD]},
        ([SYSTEM, *LONGER], [GOOD], [BAD]),
    ),
    "implicit text": ({"chosen": "Q: 2 A: 4", "rejected": "Q: 2 A: 5"}, ("Q: 2 A:", " 4", " 5")),
    "implicit text within a word": (
        {"chosen": "The sky is blue", "rejected": "The sky is black"},
        ("The sky is", " blue", " black"),
    ),
    "implicit text without spaces between words": (
        {"chosen": "\u7a7a\u306f\u9752", "rejected": "\u7a7a\u306f\u8d64"},
        ("\u7a7a\u306f", "\u9752", "\u8d64"),
    ),
    "implicit transcript": (
        {"chosen": HH + " north west", "rejected": HH + " north east"},
        (HH, " north west", " north east"),
    ),
    "texts that repeat the prompt": (
        {"prompt": HH, "chosen": HH + " north", "rejected": HH + " up"},
        (HH, " north", " up"),
    ),
    "a transcript beside messages": (
        {"prompt": HH, "chosen": [GOOD], "rejected": [BAD]},
        (LONGER, [GOOD], [BAD]),
    ),
    "sharegpt": (
        {
            "conversations": [s("human", "which way?")],
            "chosen": s("gpt", "north"),
            "rejected": s("gpt", "up"),
        },
        PAIR,
    ),
    "sharegpt whole": (
        {
            "chosen": [s("system", "be brief"), s("human", "which way?"), s("gpt", "north")],
            "rejected": [s("system", "be brief"), s("human", "which way?"), s("gpt", "up")],
        },
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "orca": (
        {"system": "be brief", "question": "which way?", "chosen": "north", "rejected": "up"},
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "orca without a system": (
        {"system": "", "question": "which way?", "chosen": "north", "rejected": "up"},
        TEXT,
    ),
    "content parts": (
        {
            "prompt": [m("user", [{"type": "text", "text": "which way?"}])],
            "chosen": [m("assistant", [{"type": "text", "text": "north"}])],
            "rejected": [m("assistant", [{"type": "text", "text": "up", "image": None}])],
        },
        PAIR,
    ),
    "content parts, several": (
        {
            "prompt": [m("user", [{"type": "text", "text": "which "}, "way?"])],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        PAIR,
    ),
    "a begun answer": (
        {
            "prompt": [USER, m("assistant", "Let me see:")],
            "chosen": [m("assistant", " north")],
            "rejected": [m("assistant", " up")],
        },
        (
            [USER, m("assistant", "Let me see:")],
            [m("assistant", " north")],
            [m("assistant", " up")],
        ),
    ),
    "a begun answer that is repeated": (
        {
            "prompt": [USER, m("assistant", "Let me see:")],
            "chosen": [USER, m("assistant", "Let me see: north")],
            "rejected": [USER, m("assistant", "Let me see: up")],
        },
        (
            [USER, m("assistant", "Let me see:")],
            [m("assistant", " north")],
            [m("assistant", " up")],
        ),
    ),
    "roles by their other names": (
        {
            "prompt": [m("Human", "which way?")],
            "chosen": [m("model", "north")],
            "rejected": [m("bot", "up")],
        },
        PAIR,
    ),
    "empty keys of a columnar file": (
        {
            "prompt": [m("user", "which way?", tool_calls=None, name=None)],
            "chosen": [m("assistant", "north", tool_calls=None, name=None)],
            "rejected": [m("assistant", "up", tool_calls=[], name=None)],
        },
        PAIR,
    ),
    "a call of a tool": (
        {"prompt": [USER], "chosen": [USER, CALLING], "rejected": [USER, BAD]},
        ([USER], [CALLING], [BAD]),
    ),
    "a call with its arguments as text": (
        {
            "prompt": [USER],
            "chosen": [
                m(
                    "assistant",
                    None,
                    tool_calls=[
                        {"id": None, "function": {"name": "look", "arguments": '{"city": "Oslo"}'}}
                    ],
                )
            ],
            "rejected": [BAD],
        },
        ([USER], [CALLING], [BAD]),
    ),
    "a call in sharegpt's form": (
        {
            "conversations": [s("human", "which way?")],
            "chosen": s("function_call", '{"name": "look", "arguments": {"city": "Oslo"}}'),
            "rejected": s("gpt", "up"),
        },
        ([USER], [CALLING], [BAD]),
    ),
    "what a tool said": (
        {
            "chosen": [USER, CALLING, m("tool", {"degrees": 3}), GOOD],
            "rejected": [USER, CALLING, m("tool", {"degrees": 3}), BAD],
        },
        ([USER, CALLING, m("tool", '{"degrees": 3}')], [GOOD], [BAD]),
    ),
    "tools on offer": (
        {
            "tools": [{"name": "look", "x": None}],
            **dict(prompt=[USER], chosen="north", rejected="up"),
        },
        ([m("tools", '[{"name": "look"}]'), USER], [GOOD], [BAD]),
    ),
    "tools on offer as text": (
        {
            "tools": '[{"name": "look"}]',
            "prompt": "which way?",
            "chosen": "north",
            "rejected": "up",
        },
        ([m("tools", '[{"name": "look"}]'), USER], [GOOD], [BAD]),
    ),
    "alpaca's instruction and input": (
        {"instruction": "which", "input": "way?", "chosen": "north", "rejected": "up"},
        ("which\n\nway?", "north", "up"),
    ),
}

NULLS = dict.fromkeys(
    ("completion", "label", "messages", "score_chosen", "info", "system", "tools")
)
PAIRS |= {
    "messages as JSON text": (
        {
            "prompt": "which way?",
            "chosen": json.dumps([USER, GOOD]),
            "rejected": json.dumps([USER, BAD]),
        },
        PAIR,
    ),
    "one message as JSON text, over lines": (
        {
            "prompt": [USER],
            "chosen": json.dumps(GOOD, indent=1),
            "rejected": f" {json.dumps(BAD)}\n",
        },
        PAIR,
    ),
    "a prompt as JSON text": (
        {"prompt": json.dumps([SYSTEM, USER]), "chosen": "north", "rejected": "up"},
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "text that only looks like JSON": (
        {"prompt": "which way?", "chosen": '{"way": "north"}', "rejected": '[{"way": "up"}]'},
        ("which way?", '{"way": "north"}', '[{"way": "up"}]'),
    ),
    "null columns of other layouts": (
        {"prompt": "which way?", "chosen": "north", "rejected": "up"} | NULLS,
        TEXT,
    ),
    "a null prompt beside whole conversations": (
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PAIR,
    ),
    "a system message as a list": (
        {"system": [SYSTEM], "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "llama-factory's earlier turns": (
        {"instruction": "and now?", "input": "", "history": [["which way?", "north"]]}
        | {"chosen": "north", "rejected": "up"},
        (LONGER, [GOOD], [BAD]),
    ),
    "ms-swift": (
        {"messages": [SYSTEM, USER, GOOD], "rejected_response": "up"},
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "ms-swift with whole conversations": (
        {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        PAIR,
    ),
    "no images": (
        {"prompt": "which way?", "chosen": "north", "rejected": "up", "images": []},
        TEXT,
    ),
    "scores as text": (
        {"prompt": "which way?", "chosen": "north", "rejected": "up"}
        | {"score_chosen": "10", "score_rejected": "9.5"},
        TEXT,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_is_a_prompt_and_two_answers(name):
    row, expected = PAIRS[name]
    before = json.dumps(row, sort_keys=True)
    assert pairs(row) == [expected]
    assert json.dumps(row, sort_keys=True) == before  # the row is not changed


def test_prompt_column_can_be_left_out():
    row = {"prompt": "a name for it", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    with pytest.raises(ValueError, match='does not contain the prompt.*prompt_column = ""'):
        read(row)
    assert pairs(row, prompt="") == [PAIR]


# -- summaries, lists, two columns -----------------------------------------------------------------

TLDR = {
    "info": {"subreddit": "maps", "title": "Lost", "post": "Where am I?\n", "article": None},
    "summaries": [{"text": " Lost in a map.", "policy": "a"}, {"text": "Lost!"}],
    "choice": 1,
}
TLDR_PROMPT = "SUBREDDIT: r/maps\n\nTITLE: Lost\n\nPOST: Where am I?\n\nTL;DR:"
ULTRA = {
    "instruction": "which way?",
    "completions": [
        {"response": "up", "overall_score": 2.0},
        {"response": "north", "overall_score": 9.0},
        {"response": "there", "overall_score": 5.0},
    ],
}
STACK = {
    "question": "which way?",
    "qid": 1,
    "answers": [
        {"answer_id": 1, "pm_score": 0, "text": "up", "selected": False},
        {"answer_id": 2, "pm_score": 6, "text": "north", "selected": True},
        {"answer_id": 3, "pm_score": 0, "text": "there", "selected": False},
    ],
}
LISTS = {
    "summaries of posts": (TLDR, (TLDR_PROMPT, " Lost!", " Lost in a map.")),
    "summaries of articles": (
        TLDR | {"info": {"title": "Lost", "post": None, "article": "Far."}, "choice": 0},
        ("TITLE: Lost\n\nARTICLE: Far.\n\nTL;DR:", " Lost in a map.", " Lost!"),
    ),
    "ultrafeedback's own completions": (ULTRA, TEXT),
    "stack exchange, paired": (
        {"question": "which way?", "response_j": "north", "response_k": "up"},
        TEXT,
    ),
    "stack exchange": (STACK, ("which way?", "north", "there")),
    "nectar": (
        {
            "prompt": HH,
            "answers": [{"answer": "up", "rank": 7.0}, {"answer": "north", "rank": 1.0}],
        },
        (HH, "north", "up"),
    ),
    "scores beside": (
        {"prompt": "which way?", "responses": ["up", "north"], "scores": [0.1, 0.9]},
        TEXT,
    ),
    "ranks beside": (
        {"prompt": "which way?", "responses": ["up", "north", "there"], "rank": [3, 1, 2]},
        TEXT,
    ),
    "conversations in a list": (
        {"prompt": [USER], "responses": [[BAD], [GOOD]], "rewards": [0, 1]},
        PAIR,
    ),
    "scores as text": (
        {"prompt": "which way?", "responses": ["up", "north"], "scores": ["9", "10.5"]},
        TEXT,
    ),
    "numbers as text in columns of their own": (
        {"history": "which way?", "human_ref_A": "up", "human_ref_B": "north", "labels": "0"},
        TEXT,
    ),
    "shp": (
        {"history": "which way?", "human_ref_A": "up", "human_ref_B": "north", "labels": 0},
        TEXT,
    ),
    "pku": (
        {
            "prompt": "which way?",
            "response_0": "up",
            "response_1": "north",
            "better_response_id": 1,
            "is_response_0_safe": True,
        },
        TEXT,
    ),
    "webgpt": (
        {
            "question": {"dataset": "eli5", "full_text": "which way?"},
            "answer_0": "up",
            "answer_1": "north",
            "score_0": -1.0,
            "score_1": 1.0,
        },
        TEXT,
    ),
    "helpsteer2": (
        {
            "prompt": "which way?",
            "response_1": "north",
            "response_2": "up",
            "preference_strength": -2,
        },
        TEXT,
    ),
    "helpsteer3": (
        {"context": [USER], "response1": "up", "response2": "north", "overall_preference": 1},
        PAIR,
    ),
    "arena": (
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
        PAIR,
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_list_is_its_best_and_its_worst_answer(name):
    row, expected = LISTS[name]
    assert pairs(row) == [expected]


def test_list_can_be_all_its_pairs():
    found = pairs(ULTRA, list_pairs="all")
    assert found == [
        ("which way?", "north", "there"),
        ("which way?", "north", "up"),
        ("which way?", "there", "up"),
    ]
    assert len(pairs(STACK, list_pairs="all")) == 2  # two are equal


# -- single answers --------------------------------------------------------------------------------

DEMOS = {
    "prompt and completion": (
        {"prompt": "which way?", "completion": "north"},
        ("which way?", "north"),
    ),
    "messages": ({"messages": [SYSTEM, USER, GOOD]}, ([SYSTEM, USER], [GOOD])),
    "sharegpt": (
        {"conversations": [s("human", "which way?"), s("gpt", "north")], "id": "x"},
        ([USER], [GOOD]),
    ),
    "sharegpt with a system beside": (
        {
            "system": "be brief",
            "conversations": [s("human", "which way?"), s("gpt", "north")],
        },
        ([SYSTEM, USER], [GOOD]),
    ),
    "alpaca": (
        {"instruction": "which", "input": "way?", "output": "north"},
        ("which\n\nway?", "north"),
    ),
    "alpaca without input": (
        {"instruction": "which way?", "input": "", "output": "north"},
        ("which way?", "north"),
    ),
    "dolly's instruction and context": (
        {"instruction": "which", "context": "way?", "response": "north", "category": "qa"},
        ("which\n\nway?", "north"),
    ),
    "a completion that repeats the prompt": (
        {"prompt": [USER], "completion": [USER, GOOD]},
        ([USER], [GOOD]),
    ),
    "earlier turns beside": (
        {"prompt": "and now?", "response": "north", "history": [["which way?", "north"]]},
        (LONGER, [GOOD]),
    ),
    "a conversation beside its first question": (
        {"prompt": "which way?", "messages": [*LONGER, GOOD]},
        (LONGER, [GOOD]),
    ),
    "a text beside a whole conversation": (
        {"prompt": "which way?", "completion": [SYSTEM, USER, GOOD]},
        ([SYSTEM, USER], [GOOD]),
    ),
}


@pytest.mark.parametrize("name", DEMOS)
def test_single_answer_is_imitated(name):
    row, expected = DEMOS[name]
    (found,) = read(row)
    assert isinstance(found, Demonstration) and (found.prompt.text, found.completion) == expected


@pytest.mark.parametrize("label", [True, False, 1, 0, 1.0, "true", "False", "TRUE", "0"])
def test_labelled_answer_keeps_its_label(label):
    (found,) = read({"prompt": "which way?", "completion": "north", "label": label})
    assert isinstance(found, Labelled)
    assert (found.prompt.text, found.completion) == ("which way?", "north")
    assert found.label == (1.0 if label in (True, "true", "TRUE") else 0.0)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, BAD], "label": False},
        {"conversations": [s("human", "which way?"), s("gpt", "up")], "label": "False"},
        {"prompt": [USER], "response": [BAD], "label": 0},
        {"instruction": "which way?", "input": "", "output": "up", "kto_tag": False},
    ],
)
def test_undesirable_answer_is_never_one_to_imitate(row):
    (found,) = read(row)
    assert isinstance(found, Labelled) and found.label == 0.0
    assert found.prompt.text in ([USER], "which way?") and found.completion in ([BAD], "up")


def test_labelled_answer_can_be_a_conversation():
    (found,) = read({"prompt": [USER], "completion": [GOOD], "label": True})
    assert (found.prompt.text, found.completion) == ([USER], [GOOD])


# -- refused ---------------------------------------------------------------------------------------

HALF = "\ud83d"
REFUSED = {
    "an answer that goes on": (
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD, m("user", "and now?")]},
        "rejected is not one answer of the assistant but assistant, user",
    ),
    "answers that part early": (
        {"chosen": [*LONGER, GOOD], "rejected": [USER, BAD, LONGER[2], BAD]},
        "chosen and rejected must differ in their last answer only",
    ),
    "another prompt": (
        {"prompt": [USER], "chosen": [m("user", "else?"), GOOD], "rejected": [USER, BAD]},
        "chosen is not one answer of the assistant but user, assistant",
    ),
    "no prompt": ({"chosen": [GOOD], "rejected": [BAD]}, "share no beginning"),
    "no shared word": ({"chosen": "Paris", "rejected": "Parma"}, "share no beginning"),
    "a beginning of the other": (
        {"chosen": "The sky", "rejected": "The sky is"},
        "empty completion",
    ),
    "a question alone": (
        {"prompt": "which way?", "chosen": [USER], "rejected": [USER, BAD]},
        "share no beginning",
    ),
    "the same answers": ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, "the same"),
    "an empty answer": (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [m("assistant", " ")]},
        "an empty completion",
    ),
    "no content": (
        {"prompt": [USER], "chosen": [m("assistant", None)], "rejected": [BAD]},
        "expected text as content",
    ),
    "an unknown role": (
        {"prompt": [m("narrator", "x")], "chosen": [GOOD], "rejected": [BAD]},
        "the roles are assistant, system, tool, user",
    ),
    "an image": (
        {
            "prompt": [m("user", [{"type": "image", "url": "x"}])],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        "content part of type 'image': only text can be read",
    ),
    "half a character": (
        {"prompt": [m("user", HALF)], "chosen": [GOOD], "rejected": [BAD]},
        "surrogates not allowed",
    ),
    "half a character in a call": (
        {
            "prompt": [USER],
            "chosen": [m("assistant", None, tool_calls=[{"name": "f", "arguments": {"x": HALF}}])],
            "rejected": [BAD],
        },
        "surrogates not allowed",
    ),
    "a call without a name": (
        {
            "prompt": [USER],
            "chosen": [m("assistant", None, tool_calls=[{"arguments": {}}])],
            "rejected": [BAD],
        },
        "a tool call with the name of a function",
    ),
    "scores that contradict": (
        dict(prompt="which way?", chosen="north", rejected="up", score_chosen=1, score_rejected=2),
        "score_chosen = 1 and score_rejected = 2 say that rejected is better",
    ),
    "a transcript that parts early": (
        {"chosen": HH + " a\n\nHuman: b\n\nAssistant: c", "rejected": HH + " d"},
        "differ before their last answer",
    ),
    "a choice that is none": (TLDR | {"choice": 2}, "choice is 0 or 1 of two summaries"),
    "summaries of nothing": (TLDR | {"info": {}}, "neither a post nor an article"),
    "a list without scores": (
        {"prompt": "which way?", "responses": ["a", "b"]},
        "no score or rank for each answer",
    ),
    "a list of equals": (
        {"prompt": "which way?", "responses": ["a", "b"], "scores": [1, 1]},
        "no answer is better than another",
    ),
    "a list without a prompt": (
        {"responses": ["a", "b"], "scores": [1, 2]},
        "no prompt beside 'responses'",
    ),
    "a list with a score too few": (
        {"prompt": "which way?", "responses": ["a", "b"], "scores": [1]},
        "no score or rank for each answer",
    ),
    "a tie": (
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "tie"},
        "no answer is better than another: winner = 'tie'",
    ),
    "a label that is a share": (
        {"prompt": "which way?", "completion": "north", "label": 0.5},
        "label is true or false, not 0.5",
    ),
    "a label that is null": (  # never an answer to imitate
        {"prompt": "which way?", "completion": "north", "label": None},
        "label is true or false, not None",
    ),
    "a score that is no number": (
        {"prompt": "which way?", "responses": ["a", "b", "c"], "scores": [float("nan"), 1, 2]},
        "no score or rank for each answer",
    ),
    "a score beside that is no number": (
        {"question": "which?", "answer_0": "a", "answer_1": "b", "score_0": float("nan")}
        | {"score_1": 1.0},
        "score_0 is a number, not nan",
    ),
    "a choice out of range": (
        {"history": "which way?", "human_ref_A": "a", "human_ref_B": "b", "labels": 2},
        "labels is 0 or 1, not 2",
    ),
    "another choice out of range": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": -1},
        "better_response_id is 0 or 1, not -1",
    ),
    "scores as text that contradict": (
        dict(prompt="q", chosen="north", rejected="up", score_chosen="9", score_rejected="10"),
        "say that rejected is better",
    ),
    "messages in Python's notation": (
        {"prompt": "which way?", "chosen": str([USER, GOOD]), "rejected": str([USER, BAD])},
        "looks like a list of messages, but is not JSON",
    ),
    "a null answer": ({"prompt": "which way?", "chosen": None, "rejected": "up"}, "not .None"),
    "a null prompt beside texts": (  # what both begin with is no prompt
        {"prompt": None, "chosen": "It is north", "rejected": "It is up"},
        "'prompt' is null",
    ),
    "a prompt under another name": (  # of argilla's Orca pairs
        {"system": "", "input": "which way?", "chosen": "It is north", "rejected": "It is up"},
        "no column 'prompt', but 'input': set prompt_column",
    ),
    "a row of very many columns": ({str(i): {} for i in range(3000)}, "9 and 2988 more$"),
    "a label that is none": (
        {"prompt": "which way?", "completion": "north", "label": "good"},
        "label is true or false, not 'good'",
    ),
    "a class beside a conversation": (
        {"messages": [USER, GOOD], "label": 3},
        "label is true or false, not 3. Rename the column",
    ),
    "a rejected answer that no layout reads": (
        {"prompt": "which way?", "response": "north", "rejected_answer": "up"},
        "'rejected_answer' may hold a rejected answer: set chosen_column",
    ),
    "ratings under another name that contradict": (
        dict(prompt="q", chosen="north", rejected="up", chosen_avg_rating=2, rejected_avg_rating=4),
        "chosen_avg_rating = 2 and rejected_avg_rating = 4 say that rejected is better",
    ),
    "ranks that contradict": (
        dict(prompt="q", chosen="north", rejected="up", rank_chosen=2, rank_rejected=1),
        "say that rejected is better",
    ),
    "an image beside text": (
        {"prompt": "<image>?", "chosen": "north", "rejected": "up", "images": ["a.png"]},
        "'images' is not empty: only text can be read",
    ),
    "an answer that is not to be trained on": (
        {"messages": [USER, GOOD | {"weight": 0}]},
        "last answer is not to be trained on",
    ),
    "the same in another form": (
        {"conversations": [s("human", "which way?"), s("gpt", "north") | {"loss": False}]},
        "last answer is not to be trained on",
    ),
    "an empty prompt": (
        {"prompt": "", "chosen": "Q: a A: b", "rejected": "Q: a A: c"},
        "an empty prompt",
    ),
    "a question without words": (
        {"chosen": [m("user", " "), GOOD], "rejected": [m("user", " "), BAD]},
        "an empty prompt",
    ),
    "an answer that cannot be seen": (
        {"prompt": "which way?", "chosen": "\u200b\xa0", "rejected": "up"},
        "an empty completion",
    ),
    "a history of something else": (
        {"instruction": "q", "output": "a", "history": ["which way?"]},
        "history holds pairs of a question and its answer",
    ),
    "a system message of a user": (
        {"system": [USER], "prompt": "q", "completion": "a"},
        "the column of the system message holds messages of user",
    ),
    "tools that are not JSON": (
        {"tools": "look(city)", "prompt": "q", "chosen": "a", "rejected": "b"},
        "the column of tools is not JSON",
    ),
    "a conversation without the prompt beside it": (
        {"prompt": "else?", "messages": [USER, GOOD]},
        "does not contain the prompt",
    ),
    "a question under another name": (
        {"input": "which way?", "output": "north"},
        "no column 'prompt', but 'input': set prompt_column",
    ),
    "a conversation that ends with a question": (
        {"messages": [USER, GOOD, m("user", "and now?")]},
        "ends with a message of the user, not with an answer",
    ),
    "an answer to nothing": ({"messages": [GOOD]}, "no message precedes the assistant"),
    "two answers in a row": ({"messages": [USER, GOOD, BAD]}, "two messages of the assistant"),
    "text without a prompt": ({"completion": "north"}, "text without a prompt"),
    "nothing known": ({"words": "north"}, "no column 'chosen'; there are words"),
    "a cell of another kind": ({"info": 3, "summaries": 4, "choice": 0}, "TypeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_row_that_cannot_be_read_says_why(name):
    row, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        read(row)


# -- the suite -------------------------------------------------------------------------------------


def suite(tmp_path, rows, **options):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": "rows.jsonl", "folder": str(tmp_path)} | options
    return build(PreferenceFile, options, "suite")


def test_row_is_named_by_its_number(tmp_path):
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(60)]
    rows[7] = {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER]}
    with pytest.raises(UsageError, match=r"row 8: behind the prompt, rejected is not one answer"):
        suite(tmp_path, rows).preferences()
    made = suite(tmp_path, rows, bad_rows="skip")
    assert sum(map(len, made._parts.values())) == 59


def turns(i):
    """Return a pair with two earlier answers."""
    head = [
        m("user", f"q{i}"),
        m("assistant", "first"),
        m("user", "more"),
        m("assistant", "second"),
    ]
    return {"prompt": [*head, m("user", "last")], "chosen": [GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(("train_on", "answers"), [("last", 1), ("all", 3)])
def test_earlier_answers_are_trained_on_where_asked_for(tmp_path, train_on, answers):
    made = suite(tmp_path, [turns(i) for i in range(200)], train_on=train_on)
    demos, prompts = made.demonstrations(), made.prompts("train")
    assert len(demos) == answers * len(prompts)
    said = [message_text(d.completion[0]) for d in demos[:answers]]
    assert said == ["first", "second", "north"][-answers:]
    assert [len(d.prompt.text) for d in demos[:answers]] == [1, 3, 5][-answers:]


def test_earlier_answer_with_weight_0_is_not_trained_on(tmp_path):
    rows = [turns(i) for i in range(200)]
    for row in rows:
        row["prompt"][1]["weight"] = 0
    demos = suite(tmp_path, rows, train_on="all").demonstrations()
    assert [message_text(d.completion[0]) for d in demos[:2]] == ["second", "north"]


def test_earlier_answer_without_words_is_refused_where_it_would_be_trained_on(tmp_path):
    rows = [turns(i) for i in range(200)]
    rows[4]["prompt"][3]["content"] = " "
    with pytest.raises(UsageError, match="row 5: an empty completion"):
        suite(tmp_path, rows, train_on="all").demonstrations()
    assert suite(tmp_path, rows).demonstrations()  # there it is only part of a prompt


def test_conversations_that_begin_alike_stay_together_where_all_answers_are_trained_on(tmp_path):
    rows = [turns(i % 40) | {"chosen": [m("assistant", f"a{i}")]} for i in range(200)]
    for i, row in enumerate(rows):
        row["prompt"] = [*row["prompt"][:-1], m("user", f"last {i}")]
    parts = suite(tmp_path, rows, train_on="all")._parts
    first = {name: {e.prompt.text[0]["content"] for e in part} for name, part in parts.items()}
    assert sum(map(len, first.values())) == 40
    parts = suite(tmp_path, rows)._parts  # negative control: by their whole prompts they part
    first = {name: {e.prompt.text[0]["content"] for e in part} for name, part in parts.items()}
    assert sum(map(len, first.values())) > 40


def labelled(n):
    for i in range(n):
        yield {"prompt": f"q{i // 3}", "completion": f"a{i}", "label": i % 3 > 0}


def test_labelled_answers_to_one_prompt_are_paired(tmp_path):
    made = suite(tmp_path, labelled(300))
    for pair in made.preferences():
        good, bad = (int(text[1:]) for text in (pair.chosen, pair.rejected))
        assert good % 3 and not bad % 3 and good // 3 == bad // 3
    assert {type(row) for row in made.judge_preferences()} == {Labelled}  # as they are
    assert len(made.preferences()) == len(made.prompts("train"))
    assert len(made.demonstrations()) == 2 * len(made.prompts("train"))  # the desirable ones
    assert set(made.references("test")) == {p.id for p in made.prompts("test")}


def test_labelled_answers_to_prompts_of_their_own_make_no_pairs(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(200)]
    made = suite(tmp_path, rows)
    assert made.preferences() == [] and made.references("test") == {}
    assert all(int(d.completion[1:]) % 2 == 0 for d in made.demonstrations())


@pytest.mark.parametrize("options", [{"list_pairs": "first"}, {"train_on": "some"}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        suite(tmp_path, [PAIRS["text"][0]], **options)
