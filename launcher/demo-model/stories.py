"""Makes the demo model's training text: small children's stories from a seeded grammar.

Every story has one hero, one friend, a place and a simple plot whose people, things and pronouns
stay the same to its end. `[a|b|c]` picks one alternative (nesting allowed) and `{name}` inserts a
value of the story. The same seed gives the same stories on every machine.
"""

import random
import re

GIRLS = (
    "Lily Mia Anna Sara Emma Lucy Rosie Ella Zoe Nora Ruby Molly Jane Amy Kate Daisy "
    "Ivy Grace Clara Maya Alice Nina Tina Ruth"
).split()
BOYS = (
    "Tom Ben Sam Max Jack Leo Tim Finn Oscar Henry Noah Will Peter Theo Adam Luke "
    "Jake Dan Hugo Toby Eric Paul Owen Felix"
).split()
SYLLABLES = (
    "ba be bo da do fa fi ga go ka ki la li lo ma mi mo na ni no pa pi ra ri ro ta ti "
    "to"
).split()
NAME_ENDINGS = ["n", "l", "s", "", "", "m", "x", "r"]
ANIMALS = (
    "cat dog rabbit fox bear mouse frog duck squirrel turtle pony owl hedgehog goat "
    "lamb elephant monkey penguin"
).split()
SMALL_ANIMALS = (
    "bird kitten puppy duckling squirrel hedgehog bunny butterfly turtle mouse"
).split()
TRAITS = (
    "little kind happy curious clever brave shy gentle funny small quiet cheerful"
).split()
COLORS = "red blue green yellow pink purple orange white brown golden".split()
SIZES = "big small little new old pretty nice".split()
TOYS = ("ball|doll|kite|toy car|teddy bear|drum|hat|boat|train|balloon|puzzle|robot|book|whistle|"
        "scarf|spoon|bell|key").split("|")
FOODS = "cake apple cookie sandwich pie banana pancake muffin carrot pear cupcake".split()
# Each place with the preposition that it takes.
PLACES = {"the park": "in", "the forest": "in", "the beach": "at", "the farm": "on",
          "the meadow": "in", "the river": "by", "the lake": "by", "the hill": "on",
          "the village": "in", "the playground": "at", "the field": "in", "the zoo": "at"}
HIDES = ["under the bed", "behind the sofa", "in the garden", "under a tree", "in the kitchen",
         "behind the door", "in the grass", "under the table", "near the pond", "in a basket",
         "on the swing", "behind a big rock", "in the bushes", "on the roof", "in the mud"]
WEATHER = ["sunny", "windy", "rainy", "cold", "warm", "cloudy", "snowy", "bright"]
HOMES = ["a small house near the forest", "a little house on a hill", "a cozy home by the river",
         "a quiet village", "a busy town", "a house with a big tree", "a white house by the sea"]
FLOWERS = "flower rose sunflower tree bean pumpkin tulip strawberry".split()
RELATIVES = ["mom", "dad", "grandma", "grandpa"]

OPENINGS = [
    "[Once upon a time|Once|One day|Long ago|A long time ago], there was a {trait} {kind} named "
    "{hero}. [{He} lived in {home}. |]{He} [loved|liked] to {hobby}. ",
    "[Once upon a time|Long ago], in {home}, there lived a {trait} {kind} named {hero}. {He} "
    "[loved|liked] to {hobby}[ every day|]. ",
    "{hero} was a {trait} {kind}. {He} lived in {home}[ with {his} {rel}|]. [{He} liked to "
    "{hobby}. |]",
    "There [once |]was a {trait} {kind} [named|called] {hero}. {hero} had a good friend "
    "[named|called] {friend}, [who was|] a {ftrait} {fkind}. ",
    "It was a {weather} [day|morning]. {hero}, a {trait} {kind}, wanted to {hobby}. ",
]
HOBBIES = ["play outside", "sing songs", "run and jump", "read books", "draw pictures",
           "play games", "dance", "climb trees", "look at the stars", "pick flowers", "swim",
           "tell stories", "play with {his} toys", "play with {his} friends",
           "bake with {his} {rel}"]
DAYS = ["One day, ", "One {weather} day, ", "One {weather} morning, ", "One afternoon, ",
        "That day, "]
ENDINGS_OF_STORIES = [
    "[From that day on|After that], {hero} and {friend} were [best|very good|great] friends.",
    "[They|{hero} and {friend}] [laughed and played|played together] [all day|until the sun went "
    "down|until it was time to go home].",
    "{hero} went home with a [big|happy] smile[ on {his} face|].",
    "That night, {hero} [slept well|fell asleep with a smile|had sweet dreams][ in {his} warm "
    "bed|].",
    "And they [all |]lived happily ever after.",
    "It was the best day ever.",
]
LESSONS = {
    "share":
        "{hero} learned that [it is good to share|sharing makes everyone happy|sharing is a kind "
        "thing to do]. ",
    "help":
        "{hero} learned that [it is good to help others|helping a friend feels good|even small "
        "friends can help]. ",
    "brave":
        "{hero} learned that [it is okay to be scared|being brave means trying|{he} could be "
        "brave]. ",
    "try":
        "{hero} learned [to never give up|that it is good to try again|not to give up]. ",
    "honest":
        "{hero} learned [to always tell the truth|that it is good to say sorry|to ask before "
        "taking things]. ",
}

# Each plot: (key of its lesson, text). The values are those that story() makes; pronouns are the
# hero's (he, his, him), with f before them the friend's, with r before them the relative's.
PLOTS = [
    ("help",
     "{Day}{hero} [could not find|lost] {his} {color} {toy}. {He} [felt|was] very sad[ and began "
     "to cry|]. \"[Where is|Have you seen] my {toy}?\" {he} asked {his} {rel}. \"[Let us look "
     "for it|I do not know. Let us look for it together|Do not worry, we will find it],\" said "
     "{his} {rel}. [First, they|They] looked {hide1}, but [the {toy}|it] was not there. Then "
     "they looked {hide2}, but it was not there. [Then|Just then], {friend} [came|came to "
     "help|ran to {hero}]. \"[I saw|I found] your {toy} {hide3}!\" said {friend}. [{hero} ran to "
     "look|They all went to look], and there it was! {hero} was so happy. \"Thank you, "
     "{friend}!\" {he} said[, and gave {fhim} a big hug|]. "),
    ("share",
     "{Day}{hero} had a [big|sweet|yummy] {food}. {He} took it to {place}[ to eat it|]. There "
     "{he} saw {fref}. {friend} [looked sad|was sitting alone|was crying]. \"[Why are you "
     "sad|What is wrong], {friend}?\" asked {hero}. \"[I am so hungry|I have no food|I forgot my "
     "lunch],\" said {friend}. {hero} looked at {his} {food}. {He} [thought for a moment|wanted "
     "to eat it all, but {he} was kind]. \"[Here, you can have half of my {food}|We can share my "
     "{food}],\" {he} said. {friend} [smiled|was very happy]. \"Thank you, {hero}! [You are so "
     "kind|You are a good friend].\" [They sat under a tree and ate the {food}|They ate the "
     "{food} together][, and it was yummy|]. "),
    ("help",
     "{Day}{hero} went to {place}. {He} [saw|found] a [small|little|tiny] {animal} {hide1}. The "
     "{animal} [was hurt|was stuck|could not move|was lost][ and scared|]. \"[Do not be "
     "scared|Do not worry], little {animal},\" said {hero}. \"I will help you.\" {hero} "
     "[called|ran to get] {his} {rel}. Together they [helped the {animal}|took the {animal} home "
     "and gave it food and water|made a warm bed for the {animal}]. [Soon|The next day|After a "
     "few days], the {animal} [felt better|was well again]. \"[Thank you for helping me|Thank "
     "you, {hero}],\" said the {animal}. [Then the {animal} went home to its family|The {animal} "
     "wanted to stay with {hero}]. {hero} was [proud|very happy|happy]. "),
    ("brave",
     "[One night, there was a big storm|One night, it was very dark|{Day}there was a loud noise "
     "outside]. {hero} was [scared|afraid]. {He} [hid under {his} blanket|ran to {his} "
     "{rel}|held {his} {toy} very tight]. \"[I am scared|I am afraid],\" {he} said. {His} {rel} "
     "[sat next to|hugged|smiled at] {him}. \"[It is only the wind|It is just the rain|There is "
     "nothing to fear],\" said {his} {rel}. \"[Close your eyes and think of {place}|Let us sing "
     "a song together|You are safe here with me].\" {hero} [took a deep breath|listened][ and "
     "closed {his} eyes|]. [Soon|After a while], {he} was not [scared|afraid] anymore. [In the "
     "morning, the sun was shining|The next day, the sky was blue]. {hero} told {friend} about "
     "it. \"You are so brave!\" said {friend}. "),
    ("try",
     "{Day}{hero} and {friend} went to {place}. They wanted to [build a {size} tower|make a "
     "{size} {color} kite|build a {size} house of sticks|build a little boat]. They worked "
     "[hard|for a long time]. But then [the wind blew|it fell down|a big wave came|{friend} "
     "tripped], and it broke! \"[Oh no|Oh dear]!\" said {friend}. [{hero} was sad|{friend} began "
     "to cry|They were both sad]. \"[Let us try again|Do not cry. We can fix it],\" said {hero}. "
     "\"[This time we will make it strong|We can do it together].\" So they [tried|worked] "
     "again. {friend} [held it|found more sticks|helped], and {hero} [put it together|tied it "
     "with a {color} string]. [At last|In the end], it was [done|finished][, and it was even "
     "better than before|]. \"We did it!\" they [said|shouted]. "),
    ("honest",
     "{Day}{hero} saw a {size} {color} {toy} at {friend}'s house. {He} [liked it very "
     "much|wanted it so much]. When {friend} was not looking, {hero} took the {toy} [home|and "
     "put it in {his} bag]. [Soon|Later|The next day], {friend} was [sad|crying]. \"I can not "
     "find my {toy},\" said {friend}. {hero} felt bad. {He} [went to {his} {rel} and told {rhim} "
     "everything|knew it was wrong]. [\"You must give it back,\" said {his} {rel}. |]So {hero} "
     "went to {friend} and gave {fhim} the {toy}. \"I am sorry, {friend}. I took your {toy},\" "
     "{he} said. {friend} [smiled|hugged {him}]. \"[It is okay|Thank you for telling me the "
     "truth],\" {fhe} said. \"[We can play with it together|Next time, just ask me].\" "),
    ("try",
     "{Day}{hero} got a [tiny|small|little] seed from {his} {rel}. \"[Put it in the ground and "
     "give it water|Plant it and wait],\" said {his} {rel}. {hero} planted the seed in the "
     "garden. Every day, {he} gave it water. [But nothing happened|One week went by, but there "
     "was nothing]. \"[Why does it not grow|When will it grow]?\" asked {hero}. \"[You have to "
     "wait|Be patient],\" said {his} {rel}. {hero} [waited and waited|sang to the seed every "
     "day]. Then, one {weather} morning, {he} saw [something green|a little green leaf]! It grew "
     "and grew until it was a {size} {color} {flower}. \"[Look|Come and see], {friend}!\" {hero} "
     "called. {friend} came to see the {flower}. \"[It is so pretty|It is beautiful]!\" said "
     "{friend}. "),
    ("help",
     "{Day}{hero} heard a [strange|soft|funny] noise {hide1}. \"[What is that|Who is there]?\" "
     "{he} asked. {He} [walked slowly|went closer|was a little scared, but {he} went] to look. "
     "There was a {size} box there. {hero} opened the box. Inside, there was a [tiny|little] "
     "{color} {animal}! The {animal} was [cold|hungry|alone]. {hero} gave it [some milk|some "
     "food|a warm blanket]. \"Can I keep it?\" {he} asked {his} {rel}. \"[Yes, but you must take "
     "care of it|Yes, you can],\" said {his} {rel}. {hero} [was so happy|jumped for joy]. {He} "
     "named the {animal} {petname}. {hero} and {petname} played [together every day|{in_place} "
     "every day]. {friend} [liked {petname} too|came to play with {petname}]. "),
    ("help",
     "{Day}there was a big race {in_place}. {hero} wanted to win. {fref} was in the race too. "
     "\"[I am very fast|I can run fast],\" said {hero}. \"[We will see|I am not fast, but I will "
     "try],\" said {friend}. [One, two, three, go!|They started to run.] {hero} ran very fast. "
     "But then {he} [heard {friend} cry|saw {friend} fall down]. [{fHe} had hurt {fhis} leg. "
     "|]{hero} stopped. {He} [wanted to win, but {he} went back to help|went back]. \"[Take my "
     "hand|Come, I will help you],\" said {hero}. They [walked|ran] to the end together. "
     "[Everyone clapped|They did not win, but everyone clapped for them]. \"[You are a true "
     "friend|Thank you for helping me],\" said {friend}. "),
    ("share",
     "{Day}it was {friend}'s birthday. {hero} wanted to give {fhim} a [gift|present]. {He} went "
     "to {his} {rel}. \"[What can I give to {friend}|Can you help me make a gift]?\" {he} asked. "
     "\"[We can make a {food}|We can bake a {food} for {fhim}],\" said {his} {rel}. They [mixed "
     "eggs and flour|worked in the kitchen all morning]. [Oh no! They had no sugar. {hero} ran "
     "to the shop to get some. |]Soon the {food} was [ready|done], and it smelled [good|so "
     "nice]. {hero} took it to {friend}. \"Happy birthday, {friend}!\" {he} said. {friend} [was "
     "so surprised|jumped for joy]. \"[This is the best gift ever|I love it! Thank you, "
     "{hero}],\" said {friend}. [They ate the {food} together|{friend} gave {him} a big hug and "
     "a piece of the {food}]. "),
    ("brave",
     "{Day}{hero} and {friend} went to {place}. [There was a {size} tree there|They saw a {size} "
     "slide]. {friend} [went up|climbed up] very fast. \"Come up, {hero}!\" said {friend}. But "
     "{hero} was [scared|afraid]. \"It is too high,\" {he} said. \"[You can do it|Do not be "
     "afraid],\" said {friend}. \"[I will hold your hand|I will be right here with you].\" "
     "{hero} [took one step, and then one more|tried once, and then {he} tried again]. [At "
     "last|Soon], {he} was at the top! \"I did it!\" {he} shouted. From the top they could see "
     "[{place2}|the whole village|the sea]. \"[I am so proud of you|See, it was not so hard],\" "
     "said {friend}. "),
    ("help",
     "{Day}{hero} wanted to go to {place}. But it [started to rain|began to snow|was very cold]. "
     "{His} {rel} said, \"[You can not go out now|It is too cold to go outside].\" {hero} was "
     "[sad|bored]. {He} looked out of the window and saw {fref}. {friend} was [wet|cold]. "
     "\"[Come in,|Come inside,] {friend}!\" {hero} called. {His} {rel} gave {friend} [a warm "
     "blanket|hot soup|a cup of warm milk]. Then {hero} and {friend} [played with the {color} "
     "{toy}|read a book about a {animal}|drew a picture of a {color} {animal}]. [Soon the rain "
     "stopped|After a while, the sun came out]. \"Look!\" said {friend}. \"[There is a "
     "rainbow|The sky is so pretty]!\" They ran outside [to see it|to play]. "),
    ("honest",
     "{Day}{hero} was playing with a {color} {toy} in the house. {His} {rel} said, \"Please do "
     "not play here.\" But {hero} did not listen. [Crash!|Oh no!] The {toy} hit a {size} cup, "
     "and the cup broke. {hero} was [scared|worried]. {He} [hid the cup {hide1}|did not know "
     "what to do]. Then {his} {rel} came in. \"[What happened|Who broke my cup]?\" {rhe} asked. "
     "{hero} looked down. \"[I broke it|It was me],\" {he} said. \"I am sorry.\" {His} {rel} "
     "[smiled|was not angry]. \"[Thank you for telling the truth|I am happy that you told me],\" "
     "{rhe} said. Together they [cleaned the floor|fixed the cup]. [Then {friend} came, and they "
     "played outside|Then {hero} went to play with {friend} {in_place}]. "),
    ("share",
     "{Day}{hero} found a {size} {color} {toy} {in_place}. \"[What a nice {toy}|I like this "
     "{toy}]!\" {he} said. {fref} saw it too. \"[Can I play with it|May I have a turn]?\" asked "
     "{friend}. \"No, it is mine!\" said {hero}. {friend} [went away|was sad and walked away]. "
     "{hero} played with the {toy} alone, but it was not [fun|much fun]. {He} [missed "
     "{friend}|felt lonely]. So {he} went to {friend} and said, \"I am sorry. [Do you want to "
     "play with me?|Let us play together.]\" {friend} [smiled|said yes]. They played with the "
     "{toy} [together|all afternoon], and it was [so much fun|much better]. "),
]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def _pronouns(prefix, gender):
    he, his, him = {"f": ("she", "her", "her"), "m": ("he", "his", "him")}[gender]
    names = {"he": he, "his": his, "him": him}
    out = {prefix + k: v for k, v in names.items()}
    out.update({prefix + k.capitalize(): v.capitalize() for k, v in names.items()})
    return out


def _expand(rng, text, values):
    for _ in range(8):
        text = re.sub(r"\{(\w+)\}", lambda m: values[m.group(1)], text)
        while True:
            new = _CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), text)
            if new == text:
                break
            text = new
        if "{" not in text:
            return text
    raise ValueError("a template refers to itself: " + text)


def _person(rng, taken):
    """Returns (name, gender, kind): a girl, a boy or an animal with a name."""
    gender = rng.choice("fm")
    while True:
        if rng.random() < 0.12:  # A made-up name, so that the model learns to copy any name.
            name = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
            name = (name + rng.choice(NAME_ENDINGS)).capitalize()
        else:
            name = rng.choice(GIRLS if gender == "f" else BOYS)
        if name not in taken:
            break
    kind = ("girl" if gender == "f" else "boy") if rng.random() < 0.6 else rng.choice(ANIMALS)
    return name, gender, kind


def story(rng):
    """Returns one story as a single line of text.

    rng: a random.Random; its state alone decides the story.
    """
    hero, gender, kind = _person(rng, ())
    friend, fgender, fkind = _person(rng, (hero,))
    petname, _, _ = _person(rng, (hero, friend))
    rel = rng.choice(RELATIVES)
    rgender = "f" if rel in ("mom", "grandma") else "m"
    place, place2 = rng.sample(list(PLACES), 2)
    hide1, hide2, hide3 = rng.sample(HIDES, 3)
    values = dict(
        hero=hero, kind=kind, friend=friend, fkind=fkind, petname=petname, rel=rel, place=place,
        in_place=PLACES[place] + " " + place, place2=place2, hide1=hide1, hide2=hide2, hide3=hide3,
        fref=friend + (" the " + fkind if fkind in ANIMALS else ""), trait=rng.choice(TRAITS),
        ftrait=rng.choice(TRAITS), toy=rng.choice(TOYS), food=rng.choice(FOODS),
        animal=rng.choice(SMALL_ANIMALS), color=rng.choice(COLORS), size=rng.choice(SIZES),
        weather=rng.choice(WEATHER), flower=rng.choice(FLOWERS), home=rng.choice(HOMES),
        hobby=rng.choice(HOBBIES), Day=rng.choice(DAYS))
    values.update(_pronouns("", gender))
    values.update(_pronouns("f", fgender))
    values.update(_pronouns("r", rgender))
    lesson, plot = rng.choice(PLOTS)
    opening = rng.choice(OPENINGS)
    if opening.startswith("It was"):  # That opening has already told the day.
        values["Day"] = rng.choice(("That day, ", "Later, ", "Soon, "))
    text = _expand(rng, opening, values) + _expand(rng, plot, values)
    if rng.random() < 0.5:
        text += _expand(rng, LESSONS[lesson], values)
    text += _expand(rng, rng.choice(ENDINGS_OF_STORIES), values)
    text = re.sub(r"\b([Aa]) (?=[aeioAEIO]|un)", r"\1n ", text)
    return re.sub(r"  +", " ", text).strip()


def stories(seed, count):
    """Yields `count` stories; the same seed gives the same stories."""
    rng = random.Random(seed)
    for _ in range(count):
        yield story(rng)


if __name__ == "__main__":
    for text in stories(1, 20):
        print(text, "\n")
