"""Chat templates of twelve families: what is trained is what the template renders."""

import copy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from harness.core.data import TOOLS
from harness.core.errors import UsageError
from harness.models.chat import Chat, ChatOptions
from harness.models.tokens import Tokens

from ..helpers.chat_families import FAMILIES, SAMPLE

NAMES = sorted(FAMILIES)
ALPHABET = sorted(set(SAMPLE)) + ["\u00e9", "\u65e5", "\U0001f468", "<", ">", "|", "[", "]"]
words = st.text(ALPHABET, min_size=1, max_size=12).filter(lambda t: t == t.strip() != "")


def message(role, content):
    return {"role": role, "content": content}


def talk(*contents):
    return [message(("user", "assistant")[i % 2], c) for i, c in enumerate(contents)]


@st.composite
def conversations(draw, family):
    """A conversation that ends with an answer, with a system message where the family takes one."""
    system = [message("system", draw(words))] if family.system and draw(st.booleans()) else []
    turns = talk(*draw(st.lists(words, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0)))
    if family.thinks:
        for turn in turns[1::2]:
            turn["content"] = f"<think>\n{draw(words)}\n</think>\n\n{turn['content']}"
    return system + turns


def whole_ids(family, messages, **how):
    how |= {"date_string": "26 Jul 2024"} if family.name == "llama3" else {}
    return list(family.tokenizer().apply_chat_template(messages, return_dict=False, **how))


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_answer_are_the_ids_of_the_whole_conversation(name):
    family = FAMILIES[name]
    tokenizer, tokens = family.tokenizer(), Tokens(family.tokenizer())
    end = tokenizer.convert_tokens_to_ids(family.end)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(conversations(family))
    def check(messages):
        prompt, answer = messages[:-1], messages[-1:]
        asked, answered = tokens.prompt_ids(prompt), tokens.completion_ids(prompt, answer)
        whole = whole_ids(family, messages)
        joined = asked + answered
        assert joined == whole[: len(joined)]
        assert asked == whole_ids(family, prompt, add_generation_prompt=True)
        assert answered[-1] == end and answered.count(end) == 1
        rest = tokenizer.decode(whole[len(joined) :])
        assert not rest.replace(tokenizer.eos_token, "").strip()  # behind the end of the turn
        if family.bos and name != "smollm2":  # ChatML's header is SmolLM2's start token
            starts = [i for i, t in enumerate(joined) if t == tokenizer.bos_token_id]
            assert starts == ([0] if "bos_token" in family.template else [])
        said = tokenizer.decode(answered, skip_special_tokens=True)
        assert said.strip().endswith(answer[0]["content"].rsplit("</think>")[-1].strip())

    check()


def test_token_does_not_reach_from_the_prompt_into_the_answer():
    tokenizer = copy.deepcopy(FAMILIES["llama3"].tokenizer())
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # as in GPT-2
    tokens, messages = Tokens(tokenizer), talk("0", "0")
    joined = tokens.prompt_ids(messages[:1]) + tokens.completion_ids(messages[:1], messages[1:])
    text = tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")
    assert tokenizer.decode(joined) == text
    assert joined != tokenizer(text, add_special_tokens=False)["input_ids"]  # a token of both
    assert joined[:-2] == tokens.prompt_ids(messages[:1])


@pytest.mark.parametrize("name", NAMES)
def test_plain_text_is_what_a_user_asks_and_its_answer(name):
    family = FAMILIES[name]
    tokens = Tokens(family.tokenizer())
    answer = "<think>\nso\n</think>\n\nnorth" if family.thinks else "north"
    as_talk = talk("which way", answer)
    assert tokens.prompt_ids("which way") == tokens.prompt_ids(as_talk[:1])
    assert tokens.completion_ids("which way", f" {answer}") == tokens.completion_ids(
        as_talk[:1], as_talk[1:]
    )
    plain = Tokens(family.tokenizer(), chat=ChatOptions(template=False))
    assert plain.prompt_ids("which way") == family.tokenizer()("which way")["input_ids"]
    assert plain.completion_ids("which way", " north")[-1] == plain.eos


@pytest.mark.parametrize("name", NAMES)
def test_text_that_was_rendered_is_the_same_conversation(name):
    family = FAMILIES[name]
    tokens, prompt = Tokens(family.tokenizer()), talk("which way", "north", "and now")
    if family.thinks:
        prompt[1]["content"] = "<think>\nso\n</think>\n\nnorth"
    text = Chat(family.tokenizer()).prompt(prompt)
    assert tokens.prompt_ids(text) == tokens.prompt_ids(prompt)
    if family.bos and text.startswith(family.bos):
        cut = text.removeprefix(family.bos)
        if name != "smollm2":
            assert tokens.prompt_ids(cut) == tokens.prompt_ids(prompt)


@pytest.mark.parametrize("name", NAMES)
def test_answer_that_was_begun_is_continued(name):
    family = FAMILIES[name]
    tokens = Tokens(family.tokenizer())
    begun = "<think>\nLet me see:" if family.thinks else "Let me see:"
    closing = "\n</think>\n\n" if family.thinks else ""
    prompt = talk("Is 7 prime?", begun)
    asked = tokens.prompt_ids(prompt)
    text = tokens.tokenizer.decode(asked)
    assert text.endswith("Let me see:") and not text.endswith(family.end)
    if name == "qwen3":  # it puts an empty thought before every last answer, begun or not
        assert "<think>\n\n</think>\n\nLet me see:" in text
    answered = tokens.completion_ids(prompt, [message("assistant", f" yes{closing}")])
    whole = talk("Is 7 prime?", f"{begun} yes{closing}")
    assert (asked + answered) == whole_ids(family, whole)[: len(asked + answered)]


@pytest.mark.parametrize("name", [n for n in NAMES if not FAMILIES[n].system])
def test_refused_system_role_is_refused(name):
    tokens = Tokens(FAMILIES[name].tokenizer())
    prompt = [message("system", "be short"), *talk("which way")]
    with pytest.raises(UsageError, match="begins 'be short': .*[Rr]ole"):
        tokens.prompt_ids(prompt)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [9, 40, 70])
def test_long_prompt_loses_whole_turns(name, more):
    family = FAMILIES[name]
    system = [message("system", "be brief")] if family.system else []
    turns = talk(*[f"turn {i} of the talk" for i in range(9)])
    full = Tokens(family.tokenizer())
    limit = len(full.prompt_ids([*system, *talk("x")])) + more
    tokens = Tokens(family.tokenizer(), max_prompt=limit)
    cut = tokens.prompt_ids([*system, *turns])
    fitting = [turns[i:] for i in range(0, 9, 2)]
    sizes = [full.prompt_ids([*system, *part]) for part in fitting]
    expected = next((ids for ids in sizes if len(ids) <= limit), None)
    if expected is not None:
        assert cut == expected
    else:  # the last turn alone is too long: it loses its beginning, and the frame stays
        assert len(cut) <= limit and cut[:3] == sizes[-1][:3] and cut[-3:] == sizes[-1][-3:]
    assert tokens.cut_prompts == 1


def test_prompt_that_no_cut_makes_fit_is_refused():
    tokens = Tokens(FAMILIES["llama3"].tokenizer(), max_prompt=6)
    with pytest.raises(UsageError, match="max_prompt_tokens = 6 is too short"):
        tokens.prompt_ids(talk("which way is north"))


def test_cut_prompt_keeps_what_was_begun():
    tokens = Tokens(FAMILIES["chatml"].tokenizer(), max_prompt=40)
    ids = tokens.prompt_ids(talk("a long question " * 9, "Let me"))
    assert len(ids) <= 40
    text = tokens.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>user\n") and text.endswith("assistant\nLet me")


# -- thoughts --------------------------------------------------------------------------------------


def test_thought_of_the_template_is_not_doubled():
    family = FAMILIES["r1"]
    tokens, prompt = Tokens(family.tokenizer()), talk("2+2?")
    answer = [message("assistant", "<think>\nadd\n</think>\n\n4")]
    text = tokens.tokenizer.decode(
        tokens.prompt_ids(prompt) + tokens.completion_ids(prompt, answer)
    )
    assert text.count("<think>") == 1 and text.endswith("<|end_of_sentence|>")


def test_answer_without_the_thought_that_the_template_opens_is_refused():
    tokens = Tokens(FAMILIES["r1"].tokenizer())
    with pytest.raises(UsageError, match="opens a thought before every answer.*chat_template = "):
        tokens.completion_ids(talk("2+2?"), [message("assistant", "4")])


def test_option_of_the_template_turns_thoughts_off():
    family = FAMILIES["qwen3"]
    options = ChatOptions(options=("enable_thinking=false",))
    tokens, prompt = Tokens(family.tokenizer(), chat=options), talk("2+2?")
    text = tokens.tokenizer.decode(tokens.prompt_ids(prompt))
    assert text.endswith("<think>\n\n</think>\n\n")
    answer = tokens.completion_ids(prompt, [message("assistant", "4")])
    assert tokens.tokenizer.decode(answer) == "4<|im_end|>"
    assert tokens.rendering()["enable_thinking"] is False
    assert tokens.rendering() != Tokens(family.tokenizer()).rendering()


# -- tools -----------------------------------------------------------------------------------------

CALL = {"function": {"name": "look_up", "arguments": {"city": "Oslo"}}, "type": "function"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].tools])
def test_call_of_a_tool_is_rendered(name):
    import json

    family = FAMILIES[name]
    tokens = Tokens(family.tokenizer())
    prompt = [message(TOOLS, json.dumps([TOOL])), *talk("Weather?")]
    if name == "qwen3":  # its form here has no place for tools on offer
        prompt = prompt[1:]
    answer = tokens.completion_ids(prompt, [CALLING])
    said = tokens.tokenizer.decode(answer)
    assert "look_up" in said and '{"city": "Oslo"}' in said and said.endswith(family.end)
    if name != "qwen3":
        assert '"parameters"' in tokens.tokenizer.decode(tokens.prompt_ids(prompt))
    later = [*prompt, CALLING, message("tool", '{"degrees": 3}')]
    said = tokens.tokenizer.decode(tokens.completion_ids(later, [message("assistant", "3")]))
    assert re.sub(r"<think>\s*</think>\s*", "", said) == f"3{family.end}"


@pytest.mark.parametrize("name", ["smollm2", "chatml", "gemma3", "zephyr"])
def test_call_that_the_template_leaves_out_is_refused(name):
    tokens = Tokens(FAMILIES[name].tokenizer())
    with pytest.raises(UsageError, match="cannot render the conversation"):
        tokens.completion_ids(talk("Weather?"), [CALLING])


def test_tools_that_the_template_leaves_out_are_refused():
    tokens = Tokens(FAMILIES["chatml"].tokenizer())
    with pytest.raises(UsageError, match="leaves out the tool 'look_up'"):
        tokens.prompt_ids(
            [
                message(TOOLS, '[{"type": "function", "function": {"name": "look_up"}}]'),
                *talk("Weather?"),
            ]
        )


def test_template_that_wants_json_text_for_arguments():
    family = FAMILIES["chatml"]
    template = family.template.replace(
        "message['content']",
        "(message.tool_calls[0].function.name + ' ' + "
        "message.tool_calls[0].function.arguments if message.tool_calls else message.content)",
    )
    chat = Chat(family.tokenizer(), template)
    _, said = chat.answered(talk("Weather?"), CALLING)
    assert said == 'look_up {"city": "Oslo"}<|im_end|>\n'


# -- the clock -------------------------------------------------------------------------------------


def test_clock_of_a_template_stands():
    tokenizer = FAMILIES["llama3"].tokenizer()
    first = Tokens(tokenizer).prompt_ids(talk("which day"))
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(first)
    other = Tokens(tokenizer, chat=ChatOptions(date="2031-01-02"))
    assert "Today Date: 02 Jan 2031" in tokenizer.decode(other.prompt_ids(talk("which day")))
    assert other.rendering()["date"] == "2031-01-02"
    assert other.rendering()["chat_template"] != Tokens(tokenizer).rendering()["chat_template"]
    today = tokenizer.apply_chat_template(talk("which day"), tokenize=False)
    assert "26 Jul 2024" not in today  # negative control: the real clock is back


def test_date_decides_nothing_where_the_template_has_no_clock():
    one, other = (
        Tokens(FAMILIES["chatml"].tokenizer(), chat=ChatOptions(date=day))
        for day in ("2024-07-26", "2031-01-02")
    )
    assert one.rendering() == other.rendering()


# -- options ---------------------------------------------------------------------------------------


def test_template_that_changes_earlier_turns_is_refused():
    family = FAMILIES["chatml"]
    template = "{{ messages | length }}" + family.template
    with pytest.raises(UsageError, match="renders the prompt differently when an answer follows"):
        Chat(family.tokenizer(), template).answered(talk("a"), message("assistant", "b"))


def test_file_stands_in_place_of_the_template(tmp_path):
    (tmp_path / "mine.jinja").write_text(FAMILIES["zephyr"].template)
    tokens = Tokens(
        FAMILIES["chatml"].tokenizer(), chat=ChatOptions("mine.jinja", folder=str(tmp_path))
    )
    assert tokens.tokenizer.decode(tokens.prompt_ids(talk("a"))) == (
        "<|user|>\na<|endoftext|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"template": "gone.jinja"}, "there is no .*gone.jinja"),
        ({"date": "yesterday"}, "chat_date is a day such as"),
        ({"options": ("thinking",)}, "chat_options holds NAME=VALUE"),
    ],
)
def test_options_that_make_no_sense(options, why):
    with pytest.raises(ValueError, match=why):
        ChatOptions(**options).check()


def test_needed_template_that_is_not_there_is_refused(make_tokenizer):
    with pytest.raises(UsageError, match="chat_template = true, but the tokenizer has no"):
        Tokens(make_tokenizer(), chat=ChatOptions(True))


def test_conversations_with_the_template_off_are_refused():
    tokens = Tokens(FAMILIES["chatml"].tokenizer(), chat=ChatOptions(False))
    with pytest.raises(UsageError, match="chat_template is false"):
        tokens.prompt_ids(talk("a"))


def test_template_names_the_token_that_ends_an_answer():
    tokens = Tokens(FAMILIES["gemma3"].tokenizer())
    end = tokens.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end in tokens.ends and tokens.eos in tokens.ends and tokens.eos != end
    assert tokens.answer_ids(talk("a"), "sampled")[-1] == end
    plain = Tokens(FAMILIES["gemma3"].tokenizer(), chat=ChatOptions(False))
    assert plain.answer_ids("a", "sampled")[-1] == plain.eos


# -- transcripts -----------------------------------------------------------------------------------

HH = "\n\nHuman: which way?\n\nAssistant: north\n\nHuman: and now?\n\nAssistant:"


def test_transcript_is_a_conversation():
    tokens = Tokens(FAMILIES["chatml"].tokenizer())
    messages = talk("which way?", "north", "and now?")
    assert tokens.prompt_ids(HH) == tokens.prompt_ids(messages)
    assert tokens.completion_ids(HH, " south") == tokens.completion_ids(
        messages, [message("assistant", "south")]
    )


def test_long_transcript_loses_whole_turns_without_a_template():
    family = FAMILIES["no_system"]
    chat = ChatOptions(False)
    whole = Tokens(family.tokenizer(), chat=chat)
    last = whole.prompt_ids("\n\nHuman: and now?\n\nAssistant:")
    cut = Tokens(family.tokenizer(), max_prompt=len(last) + 1, chat=chat).prompt_ids(HH)
    assert cut == last and cut[0] == whole.tokenizer.bos_token_id
