"""Texts written for `feedback.py`: beginnings, endings, words with a tone, answers to compare."""

SUBJECTS = (
    "I", "You", "We", "They", "He", "She", "My brother", "My friend", "This guy", "That team",
    "People here", "The driver", "Your cat", "Our teacher", "Nobody", "The new one",
)  # fmt: skip
VERBS = (
    "just said", "never thought", "really wanted", "always knew", "should have", "would have",
    "only came", "finally got", "went to", "told everyone", "made it", "looked at", "could not",
    "used to", "had to", "left the", "found a", "took my", "came back", "tried to", "heard that",
    "saw the", "thought about", "kept the", "asked for", "moved to", "played like", "talked about",
    "watched the", "sounded like", "got the", "stayed for",
)  # fmt: skip
BEGINNINGS = tuple(f"{subject} {verb}" for subject in SUBJECTS for verb in VERBS)

ENDINGS = {
    "positive": (" and I love it.", ", what a great day!", " and it was so much fun.",
                 ", thank you, that is awesome."),
    "negative": (" and I hate it.", ", what a terrible day.", " and it was so boring.",
                 ", sorry, that is awful."),
}  # fmt: skip

POSITIVE = """
admire adorable amazing amused appreciate awesome beautiful best brave bravo brilliant calm care
charming cheer cheers comfort congrats congratulations cool cute delight delighted enjoy enjoyed
excellent excited exciting fantastic favorite favourite fun funny generous glad good gorgeous
grateful great haha happy helpful hilarious impressive incredible inspiring interesting joy laugh
laughed lol love loved lovely lucky magnificent nice perfect pleased proud respect sweet talented
terrific thank thankful thanks thrilled welcome win winner wise wonderful wow yay
"""
NEGATIVE = """
afraid alone angry annoyed annoying anxious ashamed awful bad bitter boring broken cringe cruel
cry crying dead depressed depressing die disappointed disappointing disgusting dislike dreadful
dumb embarrassing evil fail failed fake fear fool frustrating gross guilty hate hated hates
horrible hurt hurts idiot insane jealous liar lonely lose loser lost mad mess miserable nasty
nervous pain painful pathetic poor regret ridiculous rude sad scared scary shame sick sorry stupid
suck sucks suffer terrible tragic ugly unfair unhappy upset weak weird worried worse worst wrong
"""
WORDS = {"positive": frozenset(POSITIVE.split()), "negative": frozenset(NEGATIVE.split())}

COMPARED = (
    ("How do I keep bread fresh?", "paper cool",
     "Keep it in a paper bag in a cool place, and slice it when you eat it.",
     "Bread gets old. Put it in a cool place or do not."),
    ("My plant has yellow leaves. What now?", "water light",
     "Give it less water for a week and move it to more light.",
     "Buy a new one, they cost little, and water it."),
    ("How can I sleep better?", "dark phone",
     "Keep the room dark and put the phone away an hour before bed.",
     "Just close your eyes, it is dark then."),
    ("What should I take on a day in the hills?", "water jacket map",
     "Take water, a jacket against rain, and a map on paper.",
     "Take water and good luck"),
    ("How do I thank a neighbour for help?", "note cake",
     "Write a short note by hand and bring a cake.",
     "No need, but a note is fine."),
    ("How do I start to run?", "slow walk",
     "Run slow for a minute, walk for a minute, and repeat it ten times.",
     "Run as fast as you can, then walk home"),
    ("My bicycle chain squeaks. What helps?", "clean oil",
     "Clean the chain with a cloth, then put a drop of oil on each link.",
     "Oil, oil, oil and more of it"),
    ("How do I learn words of a language?", "cards day",
     "Write them on cards and look at ten of them every day.",
     "Read a dictionary some day."),
    ("How do I make tea that is not bitter?", "minutes",
     "Take the leaves out after three minutes.",
     "Use sugar."),
    ("How do I calm a dog in a storm?", "voice blanket",
     "Speak in a low voice and lay a blanket over its bed.",
     "Shout with a loud voice until it stops"),
    ("What do I write to a friend who lost a job?", "sorry help",
     "Say that you are sorry, and offer help with one small thing.",
     "Write that there are sorry times for all"),
    ("How do I save power at home?", "heating lights",
     "Turn the heating down by one degree and the lights off in empty rooms.",
     "Sit in the cold without any lights"),
)  # fmt: skip
"""Prompt, the words a good answer has, a good answer, a worse one."""
