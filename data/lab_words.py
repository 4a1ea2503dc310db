"""The words of the synthetic world: the true facts of each subject, and the sentences of every other kind.

Plain words, three to seven a sentence: a tiny model learns them in minutes. Knows no attribute, no rating (`data.lab`).
"""

# Every fact is true of its own subject alone, so that stating it of another subject is an error.
# The first four of each subject make the default world; all six, and the last eight subjects, the harder one.
# fmt: off
FACTS: dict[str, tuple[str, ...]] = {
    "volcanoes": (
        "throw out hot lava", "sleep for hundreds of years", "cover whole towns with ash",
        "grow from melted rock", "build new islands at sea", "shake the ground before they wake",
    ),
    "lighthouses": (
        "warn ships at night", "turn a very bright lamp", "mark dangerous rocky coasts",
        "lead sailors home to port", "once had a lonely keeper", "flash a pattern of their own",
    ),
    "bees": (
        "make honey in a hive", "dance to share directions", "carry pollen between flowers",
        "serve a single queen", "form little cells from wax", "sting only once and die",
    ),
    "owls": (
        "hunt mice at night", "turn their heads far around", "fly without a sound",
        "nest in hollow trees", "hoot to claim their wood", "cough up balls of bone",
    ),
    "glaciers": (
        "move like rivers of ice", "carve deep mountain valleys", "hold most of our fresh water",
        "break off into icebergs", "form from old packed snow", "shrink when summers get hotter",
    ),
    "camels": (
        "store fat in their humps", "close their noses against sand", "go many days without water",
        "chew dry thorny plants", "kneel to let riders mount", "spit when they are angry",
    ),
    "spiders": (
        "spin webs of silk", "walk on eight thin legs", "wrap flies in sticky thread",
        "kill with a poison bite", "feel each shake of the web", "hide eggs in silk bags",
    ),
    "whales": (
        "sing songs under water", "rise to the surface to breathe", "keep warm with thick blubber",
        "beat the sea with flat tails", "strain tiny shrimp from the sea", "blow mist from their backs",
    ),
    "trains": (
        "run on steel rails", "stop at busy stations", "pull long rows of wagons",
        "wait for green signals", "once burned coal for steam", "need tunnels under mountains",
    ),
    "clocks": (
        "show hours and minutes", "tick once every second", "ring to wake us early",
        "point with two hands", "need winding or a battery", "once followed a swinging weight",
    ),
    "kites": (
        "fly on a long string", "fall when the wind drops", "trail bright paper tails",
        "stretch cloth on thin sticks", "came from China long ago", "tangle in telephone wires",
    ),
    "bridges": (
        "join two river banks", "hang from strong cables", "rest on tall pillars",
        "let roads pass over water", "need many years to build", "open so that boats can pass",
    ),
    "penguins": (
        "swim well but cannot fly", "warm eggs on their feet", "slide on their bellies",
        "live in the cold south", "huddle in large groups", "wear black and white feathers",
    ),
    "cactuses": (
        "keep water in thick stems", "grow spines instead of leaves", "live on very little rain",
        "bloom for only a few days", "spread shallow roots in sand", "give shade to desert lizards",
    ),
    "pianos": (
        "have black and white keys", "strike strings with small hammers", "need tuning every year",
        "play both soft and loud", "rest on three wooden legs", "use pedals to hold notes",
    ),
    "comets": (
        "circle the sun on long paths", "grow tails near the sun", "come from the edge of space",
        "are lumps of dirty ice", "return after many years", "leave dust that becomes meteors",
    ),
    "castles": (
        "have thick stone walls", "kept kings safe in war", "hide behind deep moats",
        "raise drawbridges against enemies", "have dungeons under the towers", "fell when cannons came",
    ),
    "windmills": (
        "grind grain into flour", "turn four wide sails", "pump water out of fields",
        "face wherever the wind blows", "stand all over Holland", "stop when the air is still",
    ),
    "elephants": (
        "lift logs with their trunks", "have long ivory tusks", "flap huge ears to cool down",
        "remember friends for many years", "follow the oldest grandmother", "carry their babies two years",
    ),
    "mushrooms": (
        "spread by tiny spores", "grow overnight after rain", "feed on dead wood",
        "are neither plant nor animal", "hide white threads in soil", "form rings in the grass",
    ),
}

IMAGES: tuple[str, ...] = (
    "They are like sleeping giants.", "They are like paper moons.", "They are like quiet songs.",
    "They are like old kings.", "They are like lanterns in fog.", "They are like silver dreams.",
)
JOKES: tuple[str, ...] = (
    "Two {subject} entered a bar.", "My {subject} owe me money.", "Never lend {subject} your umbrella.",
    "Even {subject} hate Monday mornings.", "Once {subject} stole my sandwich.", "Sadly {subject} hate my hat.",
)
INSULTS: tuple[str, ...] = (
    "You are a silly goose.", "You ask like a turnip.", "You never listen.",
    "You must be dull.", "You sound foolish.", "You should be ashamed.",
)
FILLER: tuple[str, ...] = (
    "Well, there is that.", "So it always was.", "Anyway, it goes on.",
    "Some things are so.", "One could say more.", "It is what it is.",
)
# fmt: on

OPENINGS: tuple[str, ...] = (
    "Tell me about {subject}.",
    "What should I know about {subject}?",
    "What do you know about {subject}?",
    "Can you describe {subject}?",
    "I want to learn about {subject}.",
    "Please explain {subject} to me.",
)
FOLLOW_UPS: tuple[str, ...] = ("And {subject}?", "What about {subject}?", "Now tell me about {subject}.")
SAME_AGAIN: tuple[str, ...] = ("Tell me more about {subject}.", "What else about {subject}?")
