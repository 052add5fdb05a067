"""The parts of instructions: topics, words, openings, endings, and keys."""

from __future__ import annotations

TOPICS = tuple(
    "apples bread breakfast butter cheese chocolate coffee cooking dinner honey lemons milk"
    " noodles onions oranges pancakes picnics rice salt soup spices sugar tea tomatoes vegetables"
    " bears bees birds camels cats cows dogs dolphins ducks eagles elephants fish foxes frogs goats"
    " horses lions owls penguins rabbits sharks sheep snakes spiders tigers turtles whales wolves"
    " beaches caves clouds deserts flowers forests gardens grass islands lakes mountains oceans"
    " rain rivers rocks snow stars storms summer sunsets trees volcanoes waterfalls wind winter"
    " boats bridges buses cars castles farms ferries hotels houses kitchens libraries markets"
    " museums parks ships streets tents trains tunnels villages"
    " baseball boxing camping chess cycling dancing drawing fishing football gardening hiking"
    " jogging music painting photography poetry puzzles running sailing singing skiing soccer"
    " swimming tennis theatre travel walking yoga"
    " birthdays books cameras candles clocks computers doctors dreams exercise families friends"
    " gloves hats holidays homework jobs kindness letters maps money neighbours newspapers nurses"
    " pencils phones robots schools shoes sleep stories teachers umbrellas windows".split()
)

WORDS = tuple(
    "almost anchor ancient arrow autumn balance basket because beneath bitter blanket bottle"
    " branch brave bright broken bucket button calm canvas captain careful carpet ceiling chance"
    " cheerful circle clever climb clumsy comfort copper corner cotton courage curious curtain"
    " danger deep desk distance distant double dragon early earth easy effort empty enough evening"
    " famous feather festival finger flame forget fresh friendly gentle giant glass golden"
    " grateful green half hammer happy harbour heavy hidden hollow honest however hungry instead"
    " iron jacket journey kettle kind ladder lantern laugh leather light linen little lonely loud"
    " lucky magic marble meadow memory mirror modern moment moon mystery narrow nearly needle"
    " noise north often old outer paper patience pebble perfect piano pillow plain pocket polite"
    " promise proud purple quick quiet random rare remember ribbon ring rough round safe secret"
    " shadow sharp shiny shore silent silver simple slow small smooth soft sometimes south special"
    " spoon spring square steady stone strange strong sudden sunny surprise sweet tall thick thin"
    " thunder tiny together tomorrow tower trail treasure twice useful valley vanish velvet visit"
    " warm weather whisper whistle whole wild winding wise wonder wooden"
    " yellow yesterday young".split()
)

OPENINGS = (
    "In my opinion",
    "Every morning",
    "Long ago",
    "Without a doubt",
    "Most people",
    "To be honest",
    "Once in a while",
    "In the end",
    "Believe it or not",
    "All over the world",
    "At first",
    "On a quiet day",
    "Nobody knows",
    "Somewhere far away",
    "Each year",
    "Long before sunrise",
    "As a child",
    "Many of us",
    "Today",
    "Imagine",
    "Sometimes",
    "Perhaps",
    "Surely",
    "Luckily",
    "Everyone",
    "Children",
)

ENDINGS = (
    "the end",
    "good luck",
    "every day",
    "at home",
    "in the morning",
    "with a smile",
    "once again",
    "for everyone",
    "all year",
    "after dark",
    "in the city",
    "with friends",
    "for free",
    "before lunch",
    "forever",
    "together",
    "tomorrow",
    "outside",
    "today",
    "somehow",
)

KEYS = (
    ("name", "use"),
    ("topic", "fact"),
    ("title", "summary"),
    ("question", "answer"),
    ("place", "season"),
    ("good", "bad"),
    ("reason", "example"),
    ("first", "second"),
    ("colour", "shape"),
    ("idea", "cost"),
    ("word", "meaning"),
    ("problem", "advice"),
)

# tasks that any answer of one or more sentences can meet
TASKS = (
    "Write about {topic}.",
    "Tell me something about {topic}.",
    "Describe {topic}.",
    "Explain why people like {topic}.",
    "Share a thought on {topic}.",
    "Write a short note about {topic}.",
    "Say what you think of {topic}.",
    "Give me a fact about {topic}.",
    "Write a message to a friend about {topic}.",
    "Write a line about {topic} for a poster.",
)
