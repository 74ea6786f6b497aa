"""Sentences for the heads that public data has no labels for: feedback, modality and fact_check. Written for this
purpose; nothing here was taken from the test sets in tests/data, which were written before."""

# ruff: noqa: E501  sentences are data: many stand on a line

from __future__ import annotations

import random
from typing import Final

from signals.train.sources.grammar import casual, expand, lines

_THINGS: Final[dict[str, list[str]]] = {
    "thing": lines(
        """
        answer | code | script | essay | email | summary | translation | recipe | function | query | list | plan | table
        explanation | outline | story | poem | letter | report | formula | regex | config | command | draft | paragraph
        rewrite | solution | schedule | diagram | calculation | response | reply | text | workout | itinerary | speech
        slogan | caption | title | conclusion | introduction | chart | macro | spreadsheet | resume | advice | version
        suggestion | analysis | diagnosis | comparison | dialogue | lesson plan | invoice | presentation | headline
        """
    ),
    "part": lines(
        """
        first part | second half | last sentence | third step | ending | opening | error handling | final paragraph
        second bullet | conclusion | part about taxes | bit about caching | middle section | example at the end | table
        third row | part with the loop | date | unit conversion | budget section | section on risks | footnote
        second equation | last line | first option | fourth point | part about the discount | permissions part
        """
    ),
    "person": lines(
        """
        my boss | my teacher | my wife | my husband | the client | my manager | the team | my kids | my students | my mum
        the landlord | our customers | my colleague | the reviewer | the examiner | my daughter | my son | everyone
        """
    ),
    "term": lines(
        """
        recursion | amortization | a closure | backpropagation | the deductible | a quorum | entropy | a webhook | a pointer
        normalisation | latency | photosynthesis | the subjunctive | escrow | a foreign key | a hash map | standard deviation
        gluten development | an index fund | a race condition | osmosis | compound interest | a lambda | churn | a proxy
        eventual consistency | a stop-loss | inertia | a gerund | a subnet | technical debt | p-value | the dative case
        """
    ),
    "problem": lines(
        """
        a syntax error | the same error | an empty page | a segmentation fault | an infinite loop | a permission error
        the wrong date | a blank screen | a stack trace | a 500 error | nothing at all | the old value | an import error
        a timeout | a type error | the wrong total | a key error | garbage characters | a merge conflict | a black screen
        """
    ),
}

_SATISFIED: Final = lines(
    """
    Thanks, that's exactly what I needed. | Thank you! | Thanks a lot for the {thing}. | thank you so much
    Perfect, thanks. | This is perfect. | That's perfect, {person} will love it. | Great job on the {thing}.
    Awesome, it works now. | It works! | Yes, it works perfectly now, thank you. | That solved it. | That solved my problem.
    Great {thing}, very clear. | I love this {thing}. | I really like the {part}. | The {part} is great. | Well done.
    You're amazing. | You are the best. | That was super helpful. | Really helpful, thanks. | Very useful {thing}.
    Ok great, that makes sense now. | Now I understand, thank you. | Got it, thanks. | I get it now, great explanation.
    Excellent {thing}. | Excellent, that's what I was looking for. | Just what I was looking for! | Exactly right.
    Wonderful, {person} was really happy with the {thing}. | Nice work. | Nice one. | Good job. | Good work on that {thing}.
    No more changes, the {thing} is ready. | I'm happy with the {thing}. | I'm very satisfied with this. | Amazing, thank you.
    Brilliant {thing}. | Beautiful, I will use it. | I appreciate your help. | I really appreciate it. | Cool, that fixed it.
    Yay, all tests pass now. | The {thing} works like it should. | The bug is gone, thank you. | Everything runs now, great.
    That is a fantastic {thing}. | Love it! | love the {part} | Wow, great. | Wow that is impressive. | So good. | Superb.
    Your {thing} helped me pass the exam. | I passed the interview because of your {thing}, thanks! | You made my day.
    That clears it up, thanks. | That clears everything up. | That answers it, thank you. | Okay, clear now. | Makes sense, cheers.
    {person} approved the {thing}, thank you. | {person} said the {thing} was excellent. | Thanks for the quick {thing}.
    Lovely {thing}. | Perfect translation. | Spot on. | You got it right this time. | Yes, that's the right one. | Yes exactly!
    That's better, thank you. | Much better now. | This {thing} is much better than the last one, keep it. | I'm impressed.
    Problem solved. | Issue resolved, thank you. | All good now. | Works great. | works fine now thanks | solved, ty
    Haha, that's funny, I like it. | That made me laugh, great. | What a lovely {thing}. | I'll use this {thing}, thanks.
    Great, I have everything I need. | Thanks, no further questions. | That's all, thank you very much. | thank u | tysm | ty!
    I couldn't have done it without you. | You saved my evening. | You saved me a lot of time with that {thing}. | Perfection.
    The {thing} was delicious. | The tips worked, I feel much better. | We followed the {thing} and had a great time.
    Merci beaucoup, c'est parfait. | Danke, das hat geholfen. | Muchas gracias, perfecto. | Grazie mille, funziona.
    The {dish} came out {good}. | The {dish} turned out {good}, {person} wanted more. | It came out {good}. | The {thing} turned out {good}. | {person} can't stop talking about the {thing}.
    All green. | Tests pass. | Deploy went through. | The build is green again. | Compiles without warnings now. | Everything passes. | It boots again. | The page loads fast now. | No more errors.
    Good point about the {part}. | Good call on the {part}. | Nice find. | Good spot, I had missed the {part}. | Smart idea. | That's a keeper. | Pure genius. | solid | this is {good} | that's {good} | so {good} | {good}!
    I'd recommend you to {person}. | Would use this {thing} again. | Full marks. | A plus. | 5/5 | Case closed. | closing this, it's solved | marking this as done, thanks | that sorted it | that was it! | bingo
    We won the game thanks to your {thing}. | I got a raise after using your {thing}. | {person} finally gets it. | {person} got an A with that {thing}. | I slept well for the first time, thanks to your {thing}.
    Good, now it compiles. | Finally it builds, thank you. | It compiled on the first try, well done. | The fix works, merging it.
    This is gorgeous, well written. | Your {part} was right on the mark. | That's a clever {thing}. | neat trick, thanks
    I'm so grateful, {person} finally agreed. | Fab. | Terrific, sending it off now. | Keep it up! | That is very kind, thanks.
    The {thing} looks great, I'm going with it. | Looks great. | Looks perfect to me, ship it. | Five stars. | best {thing} ever
    """
)
_DISSATISFIED: Final = lines(
    """
    That's wrong. | This is wrong. | No, that's not right. | That is incorrect. | Your {thing} is wrong. | The {part} is wrong.
    You got the {part} wrong. | You're wrong about the {part}. | Wrong. | Not correct. | Incorrect, try again. | no
    It doesn't work. | It still doesn't work. | Your {thing} doesn't work. | That didn't work. | That didn't help. | Doesn't help.
    I still get {problem}. | Now I get {problem}. | I tried your {thing} and got {problem}. | Your {thing} gives me {problem}.
    Running this gives {problem} again. | This is not what I asked for. | That's not what I asked. | I didn't ask for that.
    I asked for {other}, not this. | I wanted {other}. | I said {other}! | I told you {other}. | You didn't listen, I asked for {other}.
    You didn't answer my question. | You did not answer the question. | You ignored the {part}. | You left out the {part}.
    You forgot the {part}. | You missed the {part}. | The {part} is missing. | Where is the {part}? You left it out.
    This {thing} is terrible. | This {thing} is bad. | This is awful. | What a useless {thing}. | Useless. | This is useless.
    That's not helpful. | That's not helpful at all. | Not what I wanted. | Not what I meant. | You misunderstood me. | bad answer
    You keep making the same mistake. | You made the same mistake again. | Same error. | The same mistake as before. | Still wrong.
    That is still wrong. | Still not right. | Still not working. | It's still {bad}. | This is too {bad}. | The {thing} is too {bad}.
    Your {thing} is far too {bad}. | I don't like this {thing}. | I don't like the {part}. | I hate this {thing}. | I hate it.
    {person} said the {thing} was wrong. | {person} hated it. | {person} was not happy with the {thing}. | {person} rejected the {thing}.
    You made that up. | You invented that. | That function doesn't exist. | That quote isn't real. | This source does not exist.
    The facts in the {part} are false. | The numbers in the {part} are wrong. | The result should be {number}, not {number}.
    It should be {number}. | The answer is {number}, you said {number}. | There are {number} items, not {number}. | Your math is off.
    Stop doing that. | Stop repeating yourself. | You already said that. | You keep repeating the same {thing}. | Stop it.
    I already tried that. | I tried that and nothing changed. | Already did that, no luck. | No change. | No luck, it fails again.
    This makes no sense. | That makes no sense at all. | Nonsense. | That's nonsense, look again at the {part}. | What a mess.
    Are you kidding me? | Seriously? | Come on, that's not even close. | not even close | Did you even read what I wrote?
    Why did you change the {part}? I told you to keep it. | I never said to remove the {part}. | Put the {part} back, you broke it.
    You broke it. | It's worse than before. | This version is worse. | The old {thing} was better. | Now it's even worse.
    I'm disappointed. | Very disappointing {thing}. | I'm frustrated, nothing works. | This is frustrating. | ugh | Ugh, again the same thing.
    Do it again, properly. | Try again. | Try harder. | Redo the {part}, it's wrong. | Fix it, it's wrong. | You can do better than that.
    The {thing} is full of mistakes. | There are mistakes in the {part}. | There is an error in your {thing}. | Your {thing} has a bug.
    The {thing} won't compile. | It crashes. | It crashed again. | It fails with {problem}. | The {thing} failed in production.
    The link is broken. | The link doesn't work. | That page doesn't exist. | That information is old. | That's out of date.
    The translation sounds unnatural. | It sounds robotic. | It sounds like a machine. | The tone is all wrong. | Boring {thing}.
    That's rude. | That's insulting. | This is offensive. | Not funny. | That wasn't funny. | The {thing} is boring and generic.
    I can't use this. | I can't use this {thing}, it's too {bad}. | What am I supposed to do with this {thing}? It's useless.
    The {thing} tasted horrible. | The {thing} was a disaster. | The instructions were wrong and I lost my data. | my phone is broken now
    That contradicts what you said before. | You contradict yourself. | Earlier you said {number}, now {number}. Which is wrong?
    I asked about {topic} and you {talk} {topic}. | I asked for {other} and you gave me {other}. | I said {topic}, you wrote about {topic}. | Why are you telling me about {topic}? I asked about {topic}. | I wanted it in {language}, not {language}. | It has to be {language}, not {language}!
    How many times do I have to say it? | I have told you twice that the {part} stays. | For the second time, the name is {other}. | This is the fourth time I ask for {other}. | I keep telling you, {other}. | Once more: {other}, as I said before.
    Your {thing} {spoils} the {part}. | The {thing} {spoils} the {part}. | Your {thing} {spoils} the whole {part}. | This {thing} {spoils} what I meant. | The {thing} is outdated. | Your {thing} is out of date, they changed that last year. | This {thing} uses a method that was removed long ago.
    It reads like {bad2}. | This {thing} sounds like {bad2}. | Sorry, but this {thing} looks like {bad2}. | This feels like {bad2}. | Did you invent this? | You're making things up. | Is any of this real? I can't find it anywhere. | There is no such {thing}.
    I did exactly what you said and now {outcome}. | I did what you told me and {outcome}. | After your {thing} {outcome}. | Thanks to your {thing} {outcome}. | Since I ran your {thing}, {outcome}. | Followed every step, {outcome}.
    Falsch. | Das stimmt nicht. | Das funktioniert nicht. | No es correcto. | Ce n'est pas ce que je voulais. | Non funziona.
    No no no, I need {other}. | I specifically asked for {other}. | Again, I want {other}. | For the last time: {other}. | nope
    nope, wrong | Nope, still {problem}. | nah that's off | meh | this sucks | rubbish | what is this garbage | terrible {thing}
    """
)
_CLARIFY: Final = lines(
    """
    What do you mean? | What do you mean by {term}? | What does {term} mean here? | What is {term} in your {thing}? | What?
    I don't understand. | I don't understand the {part}. | I don't get the {part}. | I don't get it. | I do not follow.
    I'm lost. | I'm lost at the {part}. | I'm confused. | I'm confused by the {part}. | I am not sure I follow the {part}. | hm?
    Can you explain the {part}? | Can you explain that again? | Could you explain the {part} in simpler words? | explain it simpler
    Can you explain {term} in more detail? | Could you explain what {term} means in this {thing}? | Explain the {part} once more.
    Can you clarify? | Could you clarify the {part}? | Please clarify what you meant. | Can you clarify what you mean by {term}?
    Can you elaborate? | Can you elaborate on the {part}? | Can you go deeper into the {part}? | Tell me more about the {part}.
    Can you give an example? | Could you give me an example? | An example would help me understand. | For example? | Like what?
    Can you rephrase that? | Could you say that in other words? | Say it in simple words please. | Could you put that more simply?
    Can you simplify that? | Simplify it for me, I'm a beginner. | Explain it to me like I'm a child. | eli5 please | eli5
    Can you repeat that? | Can you repeat the {part}? | Could you say that again? | Say that again? | Sorry, what? | come again?
    Sorry, I missed the {part}. | Sorry, which one do you mean? | Which one? | Which one do you mean? | Which {thing} do you mean?
    Which of the two should I use? | Which option did you mean with "{part}"? | Do you mean {term} or something else?
    Do you mean the {part} or the {part}? | You mean the {part}? | So you mean I should change the {part}? | is that the {part}?
    So do I have to do this before the {part}? | Should I do that before or after the {part}? | Before or after the {part}?
    Is that the same as {term}? | How is that different from {term}? | What's the difference between that and {term}?
    Where do I put this {thing}? | Where does this go? | Where do I run that? | In which file? | Which version do you mean?
    Where does the {number} come from? | How did you get {number}? | Why {number}? | Where did you get the {number} from? | why though
    Why do you multiply by {number}? | Why is the {part} needed? | Why did you use {term} there? | Why is that? | Why exactly?
    How does the {part} work? | How does that work exactly? | How do you mean? | How so? | How come? | Meaning? | meaning what?
    What does the {part} do? | What does that line do? | What does this symbol mean? | What does that abbreviation stand for?
    What does the arrow mean in your {thing}? | What does the second argument do in your {thing}? | what's x in your formula?
    What is the point of the {part}? | What's the purpose of the {part}? | What is the {part} for? | what for?
    Can you walk me through the {part}? | Walk me through it step by step. | Can you go through the {part} again, slowly?
    Can you break it down? | Break the {part} down for me. | Could you show me the steps? | Show me how you got there.
    Could you be more specific? | More specific please. | Can you be more precise about the {part}? | That's vague, which {part} exactly?
    Does that include the {part}? | Does this also apply to the {part}? | Does that mean I need {term}? | Does it matter which one I pick?
    So that means I need {term}? | So if I understand correctly, the {part} comes first? | Am I right that the {part} is optional?
    Just to be clear, do you mean the {part}? | Just checking, is the {part} optional? | To confirm: the {part} first, then the rest?
    When you say "{term}", what do you have in mind? | When you wrote "{part}", did you mean the old one? | by that you mean {term}?
    I have never heard of {term}, what is it? | What exactly is {term}? | Is {term} something I have to install? | and {term} is?
    Sorry, English is not my first language, can you say it differently? | Can you use easier words? | too technical, simpler please
    I understood the {part} but not the {part}. | I follow until the {part}, then you lost me. | you lost me at the {part}
    In what order? | With which tool? | How often? | On which page? | In which order should I do that? | the first or the second?
    Does that apply to {group}, too? | Does that also go for {group}? | Does this hold for {group}? | Is that true for {group} as well? | And what about {group}, same rule? | Would that include {group}?
    Are you saying {claim2}? | Are you saying that {claim2}? | So you're saying {claim2}? | Do you mean that {claim2}? | You mean {claim2}? | Does that mean {claim2}? | Are you suggesting that {claim2}? | If I get you right, {claim2}?
    How did you get from the {part} to the {part}? | How do you get from {number} to {number}? | Could you show how {number} becomes {number}? | Can you spell out the {part}? | Please spell that out. | I don't see how {number} follows.
    Which {thing} does your {thing} use? | Which version does your {thing} need? | What does your {thing} assume about the {part}? | What input does your {thing} expect? | Which library is that in your {thing}? | Which unit is {number} in?
    What is the reason for the {part}? | Why is step {number} there? | Is step {number} needed? It looks redundant to me. | Why do I need {term} for that? | What's the reason behind the {part}? | What would happen without the {part}?
    Would you mind explaining the {part} again? | Would you mind repeating that? | Mind rephrasing the {part}? | Could you word that differently? | Sorry, I didn't get that. What should I click? | I didn't hear that right, which button? | Sorry, what was the name of the option?
    Was meinst du damit? | Kannst du das genauer erklären? | ¿Qué quieres decir? | Je ne comprends pas, peux-tu expliquer ? | Cosa intendi?
    Could you unpack the {part}? | What did you mean with the {part}? | what was the {part} again | remind me what {term} was?
    """
)
_FEEDBACK_RULES: Final = {
    **_THINGS,
    "other": lines(
        """
        bullet points | a shorter one | French | a table | plain text | three examples | Python, not Java | metric units
        no emojis | a formal tone | JSON | the 2019 figures | a vegan one | one paragraph | British spelling | no headings
        only the code | five ideas | the opposite | a summary, not an essay | the left column | a loop | two sentences
        """
    ),
    "bad": lines(
        "long | short | formal | vague | complicated | slow | generic | wordy | broken | childish | technical | wrong"
    ),
    "dish": lines("cake | soup | bread | curry | stew | pizza | roast | salad | lasagna | pie | sauce | omelette"),
    "good": lines(
        "great | perfect | excellent | amazing | wonderful | fantastic | awesome | brilliant | superb | lovely | fire | top | beautiful | really good"
    ),
    "talk": lines(
        "talk about | tell me about | gave me | wrote about | answered about | explained | went on about | keep talking about"
    ),
    "spoils": lines(
        "misses | ignores | changes | distorts | leaves out | misrepresents | contradicts | skips | mixes up | ruins | twists | forgets"
    ),
    "bad2": lines(
        "a machine wrote it | marketing fluff | a robot | a school essay | spam | copy and paste | a lawyer wrote it | nonsense | an advert | filler text"
    ),
    "outcome": lines(
        "my laptop won't start | everything is gone | the site is down | it's worse | my screen is frozen | I can't log in any more | the data is lost | the server is dead | it smells burnt | nothing works"
    ),
    "group": lines(
        "freelancers | children | part-timers | older phones | the free plan | students | weekends | non-citizens | both accounts | small companies | the mobile app | vegetarians | tenants | used cars"
    ),
    "claim2": lines(
        "I have to pay twice | the contract is invalid | it won't work offline | I should restart first | the first one is better | we need a new licence | the fee is gone | I can skip the {part} | it's not covered | nothing is saved"
    ),
    "topic": [
        "taxes",
        "cars",
        "gardening",
        "Python",
        "my job",
        "the weather",
        "history",
        "shoes",
        "wine",
        "birds",
        "Mars",
        "loans",
    ],
    "language": ["French", "English", "German", "Italian", "Dutch", "Korean", "Polish", "Latin"],
    "number": lines("42 | 3.5 | 17 | 0.8 | 1998 | 256 | 12 | 7 | 100 | 64 | 2 | 9.81 | 1500 | 0.05 | 30% | 12%"),
}
_OPENERS: Final = {
    "satisfied": lines("Ok, | Oh, | Yes! | Ah, | Hey, | Cool. | Right, | Wow, | Great. | Yep. | Hi again, | Nice!"),
    "dissatisfied": lines(
        "Hmm, | No. | No, | Sorry, but | Ugh. | Hey, | Well, | Um, | Wait, | Look, | Honestly, | But | again:"
    ),
    "clarification": lines(
        "Hmm, | Sorry, | Wait, | Ok but | Um, | Hold on, | Thanks, but | Hm ok. | Right, but | Just one thing: | so"
    ),
}

_ORDINARY: Final = lines(
    """
    Write a {thing} about {topic}. | Write a {thing} for {person}. | Make a {thing} about {topic}. | Create a {thing} for {topic}.
    Help me with a {thing} about {topic}. | I need a {thing} for {person}. | Give me a {thing} on {topic}. | Draft a {thing} about {topic}.
    What is {topic}? | Tell me about {topic}. | How does {topic} work? | Explain {topic}. | What is the history of {topic}?
    Compare {topic} and {topic}. | Why is {topic} important? | Which books about {topic} do you recommend? | What's new in {topic}?
    How do I learn {topic}? | Is {topic} hard to learn? | I want to start with {topic}, where do I begin? | Who invented {topic}?
    Translate this {thing} into {language}. | Summarize this {thing}. | Proofread my {thing}. | Shorten this {thing}. | Rewrite my {thing}.
    Convert {number} miles to kilometers. | What is {number} times {number}? | How many days until Christmas? | What time is it in Tokyo?
    Set a timer for {number} minutes. | Remind me to call {person} tomorrow. | Play some {topic} music. | hello | hi | Good evening!
    hey, how are you | Let's play a game. | Can you help me with {topic}? | I have a question about {topic}. | I'm planning a trip to {place}.
    Find me a hotel in {place}. | What is the weather in {place}? | What should I see in {place}? | Best restaurants in {place}?
    Act as a {topic} expert and interview me. | Pretend to be {person}. | Tell me a story about {topic}. | Tell me a joke about {topic}.
    Now write it in {language}. | Now do one about {topic}. | Next, add a section about {topic}. | Add tests for it. | Also make a {thing}.
    Continue. | go on | next | And for {place}? | Ok, next topic: {topic}. | Let's move on to {topic}. | Then write the {part}.
    Implement {term} in {code}. | Write a {code} program that prints {topic}. | How do I sort a list in {code}? | What does this {code} code do?
    Fix the bug in this {code} function. | My {code} program shows {problem}, how can I fix it? | I get {problem} when I start my {code} app.
    The customer says the {thing} is wrong. Write a reply. | A user wrote: "thank you". Classify the sentiment. | Cancel my subscription.
    Where is my order? | I was charged twice for my order. | My card was stolen. | How do I change my address? | I lost my password.
    Generate {number} ideas for {topic}. | List {number} facts about {topic}. | What are the advantages of {topic}? | Define {term}.
    What is {term}? | What is the difference between {term} and {term}? | When should I use {term}? | Teach me about {term}.
    """
)
_TOPICS: Final = {
    "topic": lines(
        """
        solar power | jazz | chess | climate change | the Roman Empire | machine learning | gardening | coffee | marathon training
        blockchain | the French Revolution | beekeeping | sailing | electric cars | yoga | the stock market | black holes
        photography | Japanese tea ceremonies | the printing press | cybersecurity | dinosaurs | opera | remote work | vaccines
        mushrooms | football | personal finance | the Cold War | poetry | volcanoes | knitting | origami | medieval castles
        robotics | nutrition | sleep | skiing | ancient Egypt | microservices | urban planning | dogs | interior design | wine
        """
    ),
    "place": lines(
        "Lisbon | Kyoto | Oslo | Buenos Aires | Cairo | Prague | Vancouver | Hanoi | Rome | Marrakesh | Dublin | Seoul"
    ),
    "language": lines(
        "French | Spanish | German | Japanese | Arabic | Hindi | Italian | Korean | Dutch | Turkish | Chinese"
    ),
    "code": lines("Python | Rust | JavaScript | Go | C++ | Java | SQL | bash | Haskell | TypeScript | R | Kotlin"),
}


def feedback(chance: random.Random, size: int) -> list[tuple[str, str]]:
    """(text, label) pairs; the label is satisfied, dissatisfied, clarification or none."""
    rules = {**_FEEDBACK_RULES, **_TOPICS}
    kinds = {"satisfied": _SATISFIED, "dissatisfied": _DISSATISFIED, "clarification": _CLARIFY, "none": _ORDINARY}
    made = []
    for label, sentences in kinds.items():
        for index in range(size):
            text = expand(sentences[index % len(sentences)], rules, chance)
            draw = chance.random()
            if label != "none" and draw < 0.2:
                text = f"{chance.choice(_OPENERS[label])} {text}"
            elif draw < 0.3:
                text = f"{text} {expand(chance.choice(sentences), rules, chance)}"
            made.append((casual(text, chance), label))
    return made


_SUBJECT: Final = lines(
    """
    a {adjective} {animal} | a {animal} wearing a {garment} | a {place2} at {moment} | an old {job} | a {job} in a {place2}
    a {adjective} {place2} | two {animal}s playing {sport} | a {vehicle} crossing a {place2} | a bowl of {food} | a {food} on a wooden table
    a {adjective} {vehicle} | a {animal} riding a {vehicle} | a portrait of a {job} | a map of a {adjective} island | a {adjective} garden
    my {animal} as a superhero | a {adjective} kitchen | a cosy living room with a {animal} | a {job} fighting a {adjective} monster
    a family of {animal}s | the view from a {place2} | a {adjective} flower | a robot {job} | a dragon above a {place2}
    """
)
_PICTURE_RULES: Final = {
    "subject": _SUBJECT,
    "adjective": lines(
        """
        red | tiny | giant | glowing | abandoned | futuristic | ancient | colorful | sleepy | happy | broken | golden | misty | snowy
        steampunk | magical | minimalist | haunted | floating | crystal | wooden | rusty | bright | mysterious | tropical
        """
    ),
    "animal": lines(
        "cat | dog | fox | owl | whale | panda | horse | elephant | rabbit | tiger | raven | turtle | koala | bear | wolf"
    ),
    "garment": lines(
        "hat | scarf | tuxedo | space suit | crown | raincoat | pair of sunglasses | kimono | backpack | bow tie"
    ),
    "place2": lines(
        """
        beach | forest | city street | castle | mountain lake | desert | library | train station | market | space station | jungle
        village | cathedral | harbour | rooftop | subway | meadow | cave | skyline | coffee shop | spaceship | bridge
        """
    ),
    "moment": lines("sunset | dawn | night | golden hour | noon | midnight | blue hour | twilight | winter | autumn"),
    "job": lines(
        "fisherman | astronaut | wizard | samurai | chef | queen | detective | pirate | farmer | ballerina | knight | doctor"
    ),
    "vehicle": lines(
        "bicycle | steam train | sailing ship | sports car | hot air balloon | motorbike | submarine | tractor | spaceship"
    ),
    "sport": lines("chess | football | poker | tennis | cards | the piano | basketball"),
    "food": lines("ramen | strawberries | sushi | pizza | pancakes | fruit | chocolate cake | tacos | bread | noodles"),
    "style": lines(
        """
        in watercolor | in the style of Van Gogh | as an oil painting | as pixel art | in anime style | photorealistic | in 3d
        as a pencil drawing | cartoon style | art nouveau | vaporwave | low poly | isometric | black and white photo
        studio ghibli style | comic book style | line art | digital art | hyperrealistic, 4k | cinematic lighting, 8k
        ultra detailed, octane render | flat vector style | 35mm film photo | charcoal sketch | as a mosaic | claymation
        """
    ),
    "picture": lines(
        """
        image | picture | photo | drawing | painting | illustration | sketch | portrait | artwork | rendering | cartoon
        watercolor | poster | wallpaper | icon | digital painting | sticker | book cover | logo | banner | avatar | mural
        """
    ),
    "make": lines(
        "generate | create | draw | make | paint | design | produce | render | sketch | illustrate | make me | draw me"
    ),
    "please": lines(
        "please | can you | could you | I want you to | I'd like you to | hey, | I need you to | would you"
    ),
    "picture2": lines(
        "header image | hero image | seamless pattern | sticker design | icon | drawing | sketch | painting | illustration | photo | image | picture | coloring page | cover | poster | thumbnail | background image | wallpaper | logo | banner | mural | concept art | silhouette | collage"
    ),
    "thing2": lines(
        "a tree house | a lighthouse | an old clock | two penguins | a smiling pear | a teapot | a violin | a kitten | a snail | a cactus | a hot dog | a rocket | a treehouse village | flying whales | a giraffe | a zebra | a mountain hut | a bunch of tulips | an umbrella | a pocket watch | a little ghost | a farmhouse | a bonsai | a windmill | a jellyfish | a typewriter | a piano | oranges and leaves | a garden gnome | a coral reef"
    ),
    "place3": lines(
        "blog | website | shop | newsletter | kids' room | wall | phone | podcast | channel | presentation | club | living room | store | band page"
    ),
    "scene": lines(
        "a fish swims through a city | cats rule the world | the moon is made of cheese | books grow on trees | a train flies over the sea | two robots share an ice cream | it rains flowers | a child paints the sky | elephants walk on clouds | a city hangs upside down | snow covers a desert | a shark sits in an office"
    ),
    "title": lines(
        "The Girl with a Pearl Earring | The Picture of Dorian Gray | A Portrait of the Artist as a Young Man | The Da Vinci Code | Sunflowers by Van Gogh | The Night Watch | The Image of the City | Photograph by Ed Sheeran"
    ),
    "business": lines(
        """
        bakery | law firm | gym | bookshop | podcast | coffee brand | dental clinic | startup | school | band | florist | brewery
        yoga studio | pet shop | restaurant | travel agency | football club | charity | barber
        """
    ),
}
_IMAGE: Final = lines(
    """
    {make} a {picture} of {subject} | {make} an image of {subject} | {please} {make} a {picture} of {subject} | {make} {subject}
    {make} {subject} {style} | {please} {make} {subject} {style} | {subject}, {style} | {subject} {style} | {subject} at {moment}, {style}
    {picture} of {subject} | {picture} of {subject}, {style} | a {picture} of {subject} at {moment} | {subject}, {style}, highly detailed
    {make} a logo for a {business} | {make} a logo for my {business}, {style} | I need a logo for my {business} | logo for a {business}
    {make} a poster for our {business} | {make} a banner for my {business} | {make} a profile picture of {subject} | new avatar: {subject}
    I want a {picture} of {subject} | I need a {picture} of {subject} for my wall | I'd love a {picture} of {subject} | give me a {picture} of {subject}
    show me a {picture} of {subject} | show me {subject} {style} | can I get a {picture} of {subject}? | imagine {subject}, {style}
    /imagine {subject}, {style} | {subject} --ar 16:9 --v 5 | {subject}, {style} --ar 3:2 | portrait of a {job}, {style}
    make this photo look like a {picture} | turn this picture into a {picture} {style} | remove the {animal} from this photo
    change the background of the image to a {place2} | edit this image so the {animal} wears a {garment} | crop the picture and add a {garment}
    make the image darker | replace the sky in the photo with a {moment} sky | add a {animal} to the picture | colorize this old photo
    upscale this image | put a {garment} on the {animal} in this image | another picture, but with a {animal} | same image but at {moment}
    concept art of {subject} | character design of a {job}, {style} | cover art for a fantasy novel with {subject} | movie poster with {subject}
    book cover with {subject}, {style} | phone wallpaper of {subject} | t-shirt design with {subject} | tattoo design of {subject}
    coloring page of {subject} | clip art of {subject} | seamless pattern with {animal}s and flowers | icon set of {animal}s, {style}
    birthday card image with {subject} | a picture for my {business} website: {subject} | header image with {subject} for my blog
    visualize {subject} | {please} visualize {subject} as a {picture} | what would {subject} look like? show me a picture
    app icon showing {subject} | album cover with {subject} | product photo of a {food}, studio light | interior design render of a {adjective} kitchen
    I need a {picture2} for my {place3} | I need a {picture2} about {topic} | I want a {picture2} where {scene} | I want an image in which {scene} | an image where {scene} | picture where {scene} | {picture2} where {scene}, {style}
    {picture2}: {thing2} | {picture2}: {thing2}, {style} | {picture2} of {thing2} | a {picture2} with {thing2} | give me a {picture2} of {thing2} that I can print | give me a drawing of {thing2} to color in | {make} a {picture2} of {thing2} for my {place3}
    {make} {thing2} | {make} {thing2} {style} | {make} {thing2} for me | {make} {thing2} with {thing2} | {please} {make} a picture of {thing2} with {thing2} and {thing2} | Can you {make} a picture of my dream car? Red, with two doors, in front of {thing2}.
    {thing2}, {style} | {thing2} and {thing2}, {style} | {thing2}, white background, thick outline | {thing2}, soft shadows, studio light | show me what a mix of {thing2} and {thing2} would look like | show me how {thing2} would look in {language} colors
    ein Bild von einem Hund am Strand malen | dibuja un gato con sombrero | dessine un château au coucher du soleil | disegna un drago rosso
    {make} four variations of {subject} | {make} a comic panel with {subject} | {make} a mascot for a {business}: {subject} | {make} pixel art of {subject}
    {make} a 3d model render of {subject} | {make} a stained glass {animal} | film still of a {job} in a {place2} | fashion photo, {job} in a {place2}
    """
)
_BOTH: Final = lines(
    """
    write a {text} about {subject} and {make} a picture of it | write a {text} about {topic} and illustrate it | write a {text} and draw {subject}
    write a {text} about {topic} with pictures | a {text} about {topic} with an illustration | {make} a picture of {subject} and write a {text} about it
    explain {topic} and {make} an image that shows it | explain {topic} with a picture | explain {topic} with generated images for each step
    describe {subject} and {make} an image | describe {topic} in words and in a picture | {make} a {picture} of {subject} and describe it in a few sentences
    tell me about {topic} and show me a picture | tell me a story about {subject} and draw it | tell me a story about {subject} with illustrations
    I need a {text} for my {business} and a logo | I need both a {text} and an image about {topic} | {make} a logo for my {business} and write a {text} too
    come up with a name for my {business} and {make} a logo | invent a {adjective} creature, describe it and draw it | give me a recipe for {food} and a picture of it
    recipe for {food} with a photo of the dish | give me a {text} about {topic} plus a matching image | write the {text} and also {make} a header image
    write a {text} and generate a cover image | {make} a {picture} of {subject}, then write a {text} to go with it | first a {text} about {topic}, then a {picture}
    make a children's story about {subject} with a drawing on each page | compare {topic} and {topic} and generate an image of each
    summarize the history of {topic} and create an illustration | create an infographic about {topic}: text and image | make a flyer for my {business}, text and artwork
    social media post about {topic}: caption and image | write an Instagram caption and {make} the photo of {subject} | blog article on {topic} with {style} pictures
    {make} a comic about {subject} with dialogue | design a poster about {topic} and write the press release | write a poem about {subject} and paint it {style}
    write a haiku on {topic} and a picture to match | lesson plan about {topic} with illustrations | step by step instructions for {topic} with a picture for every step
    write a character backstory for a {job} and a portrait | a short biography of a {job} with a portrait {style} | travel guide for a {place2} with photos you generate
    teach me {topic} with diagrams you draw | explain how a {vehicle} works and draw it | what does a {animal} eat? answer and show me a generated photo
    product description and product photo for a {adjective} {food} | menu for a {business} with a picture of every dish | {make} an ad for my {business}: slogan plus image
    write a screenplay scene in a {place2} and {make} a storyboard image | outline a novel about {topic} and {make} the cover | write a fable about a {animal} and {make} a woodcut of it
    give me a motivational quote and a background image | greeting card: write the verse and {make} the picture | newsletter about {topic} with a header picture
    write the text of {occasion} and put a generated picture next to it | write {occasion} wishes with a picture beside them | {text} for {occasion}, together with a generated image | a handout on {topic} with explanations and drawings | prepare a one page sheet on {topic} that has text and pictures
    script for a short ad and draw the storyboard | write the scenes of a short film and sketch each frame | write a scene by scene outline and {make} a frame for each | both a {text} and a {picture2} about {topic} | I want text and pictures on {topic} | {text} about {thing2}, and {make} {thing2} as well
    describe three ideas for {topic} and generate an image of each | a page about {subject}: two sentences and a {picture} | {text} about {topic}, and {make} an illustration as well
    """
)
_TEXT_RULES: Final = {
    "occasion": lines(
        "a birthday | a wedding | an anniversary | Christmas | a retirement party | Mother's Day | a baptism | New Year"
    ),
    "text": lines(
        "story | poem | article | blog post | paragraph | short story | essay | song | report | description | haiku | limerick | fable"
    ),
}
_WORDS: Final = lines(
    """
    {make2} a {thing} about {topic} | {make2} a {thing} for {person} | {make2} a {text} about {subject} | {make2} a {text} about {topic}
    describe {subject} in 100 words | describe a {picture} of {subject} you like | write alt text for an image of a {animal} | what is a good camera for beginners
    how do I draw a {animal}? | how to paint a {place2} with acrylics | how do I take better photos at {moment}? | who painted this famous {picture}?
    what does the {picture} mean? | explain the history of {style2} | which museum has the most famous {picture}? | who designed the logo of Apple?
    how do I resize an image in {code}? | {code} code to draw a circle | how to crop a photo in Photoshop | convert png to jpg in {code}
    how do I plot a {picture} in {code} | my {code} program does not render the image | the image does not load on my website | docker image too large
    compare svg and png | what resolution does a {picture} need for print? | how much does a {picture} cost? | is AI {picture} art copyrighted?
    draw a conclusion from this {thing} | draw up a {thing} for {person} | draw a comparison between {topic} and {topic} | picture this: you live in a {place2}. what do you do?
    paint me a picture in words of {topic} | give me an image of success in one sentence | illustrate your point about {topic} with an example | sketch a plan for {topic}
    design a {thing} for {topic} | design a database for a {business} | design an experiment about {topic} | create a {thing} for my {business} | create a class for a {vehicle} in {code}
    generate a {thing} about {topic} | generate test data for a {business} | generate a password | generate {number} names for a {business} | make a {thing} of {topic}
    make a list of famous photographers | make a plan for {topic} | make a reservation for two | produce a report on {topic} | render this markdown as html
    show me how to cook {food} | show me the {code} code for {term} | show me a {thing} about {topic} | show me the way to the {place2}
    write a story about a {job} | write a story about a {animal} who paints | write a scene in a photo studio | write a prompt for an image generator about {subject}
    write a {thing} about a famous {picture} | write a letter to a {job} | write a caption for my photo | write a critique of the {picture} | what is this {picture} worth?
    paint color ideas for my bedroom | what brush for oil painting? | what's the best paint for a {vehicle}? | best drawing tablets under 200 dollars
    remove duplicates from a list in {code} | change the background color with css | edit my {thing} | add a {thing} about {topic} | replace all tabs with spaces in {code}
    what is {topic}? | tell me about {topic} | {topic} explained | how does an image sensor work? | how do diffusion models create images? | what is photosynthesis
    visualize the data with matplotlib code | give me {code} code that makes a bar chart | explain the picture of the atom by Bohr | what is the big picture of {topic}?
    summarize {title} | what happens in {title}? | who wrote {title}? | analyse {title} | write an essay on {title} | explain the meaning of {title} | give me quotes from {title} | write a {text} about {thing2} | describe {thing2} in two sentences
    write a product description for {thing2} | write an ad for {thing2} | how do I build {thing2}? | how do I clean {thing2}? | how much does {thing2} cost? | where can I buy {thing2}? | explain how picture generators work | explain how image models generate pictures
    what is a portrait lens? | tips for portrait photography | name five paintings by Monet | where is the {picture} exhibited? | when was the {picture} painted?
    """
)
_STYLES2: Final = {
    "style2": lines(
        "impressionism | cubism | anime | pixel art | stained glass | art deco | street art | baroque painting | pop art"
    ),
    "make2": lines("write | create | draft | generate | make | produce | compose | prepare | design | develop"),
}


def modality(chance: random.Random, size: int) -> list[tuple[str, str]]:
    """(text, label) pairs; the label is text, image or both."""
    rules = {**_FEEDBACK_RULES, **_TOPICS, **_PICTURE_RULES, **_TEXT_RULES, **_STYLES2}
    made = []
    for label, sentences in (("image", _IMAGE), ("both", _BOTH), ("text", _WORDS + _ORDINARY)):
        for index in range(size):
            text = expand(sentences[index % len(sentences)], rules, chance)
            if chance.random() < 0.25:
                text = f"{chance.choice(['Please', 'Hi,', 'Can you', 'Could you please', 'I want you to', 'Hello!', 'ok,', 'now'])} {text}"
            if chance.random() < 0.15:
                text = f"{text}{chance.choice(['. Thanks!', ' please', ' for me', ' for my kids', ' today', ', make it fun', '. Be creative.'])}"
            if chance.random() < 0.5:
                text = text[:1].upper() + text[1:]
            made.append((casual(text, chance), label))
    return made


_CLAIM_RULES: Final = {
    **_TOPICS,
    "country": lines(
        """
        Kenya | Peru | Norway | Thailand | Canada | Egypt | Poland | Chile | Vietnam | Greece | Nigeria | Portugal | India | Japan | Mexico
        Iceland | Morocco | Hungary | Argentina | South Korea | Ireland | Turkey | Cuba | Nepal | Sweden | Malaysia
        """
    ),
    "human": lines(
        """
        Isaac Newton | Cleopatra | Mozart | Nelson Mandela | Ada Lovelace | Galileo | Shakespeare | Abraham Lincoln | Gandhi | Leonardo da Vinci
        Charles Darwin | Julius Caesar | Florence Nightingale | Nikola Tesla | Genghis Khan | Beethoven | Churchill | Joan of Arc | Aristotle
        """
    ),
    "event": lines(
        """
        World War I | the Battle of Waterloo | the first moon landing | the Black Death | the Russian Revolution | the fall of Constantinople
        the Great Depression | the Vietnam War | the Boston Tea Party | the Cuban missile crisis | the Irish famine | the Industrial Revolution
        the sinking of the Lusitania | the Spanish flu | the Renaissance | the first Olympic Games | the Treaty of Tordesillas | Brexit
        """
    ),
    "stuff": lines(
        """
        caffeine | aspirin | gold | sugar | mercury | insulin | alcohol | lead | vitamin D | plastic | helium | garlic | red meat | chocolate
        green tea | salt | turmeric | fluoride | ibuprofen | magnesium | MSG | gluten | aluminium | uranium | nitrogen | omega-3
        """
    ),
    "illness": lines(
        "cancer | diabetes | flu | migraine | asthma | dementia | acne | obesity | autism | arthritis | malaria | high blood pressure | tuberculosis"
    ),
    "creature": lines(
        "bats | octopuses | elephants | bees | crocodiles | penguins | spiders | dolphins | cats | snakes | whales | ants | ostriches | bulls"
    ),
    "body": lines(
        "heart | liver | brain | skin | lungs | kidneys | stomach | eye | pancreas | blood | spine | thyroid"
    ),
    "company": lines(
        "Toyota | Google | Nestle | Samsung | IKEA | Boeing | Netflix | Microsoft | Lego | Volkswagen | Amazon | Sony | Pfizer"
    ),
    "measure": lines(
        "population | area | GDP | life expectancy | literacy rate | currency | national language | highest mountain | average income | birth rate"
    ),
    "planet": lines(
        "Mars | Venus | Jupiter | Neptune | Mercury | the sun | Uranus | Titan | the Milky Way | Halley's comet"
    ),
    "work": lines(
        "Hamlet | The Godfather | Moby-Dick | The Starry Night | Don Quixote | Star Wars | The Odyssey | Titanic | 1984 | Guernica | Bohemian Rhapsody"
    ),
    "law": lines(
        "the GDPR | the First Amendment | the Kyoto Protocol | the Clean Air Act | the Geneva Conventions | HIPAA | the Civil Rights Act | the Bill of Rights"
    ),
    "year": lines("1492 | 1776 | 1815 | 1914 | 1945 | 1969 | 1989 | 2001 | 2010 | 2016 | 2020 | 2023"),
    "ask": lines(
        "do you know | tell me | I'd like to know | can you tell me | please tell me | quick question: | I wonder | could you check"
    ),
}
_FACTS: Final = lines(
    """
    When did {event} begin? | When did {event} end? | When was {human} born? | Where was {human} born? | How did {human} die? | Who was {human}?
    What did {human} discover? | What is {human} famous for? | What caused {event}? | Who won {event}? | How many people died in {event}?
    What is the capital of {country}? | What is the {measure} of {country}? | How big is {country}? | Who is the president of {country}?
    Which countries border {country}? | What language do they speak in {country}? | When did {country} become independent? | is {country} in the EU?
    How many people live in {country}? | What's the largest city in {country}? | What was the {measure} of {country} in {year}? | tallest mountain in {country}
    Who wrote {work}? | When was {work} released? | Who directed {work}? | Who painted {work}? | How long is {work}? | what year did {work} come out
    Is {stuff} bad for the {body}? | Does {stuff} cause {illness}? | Does {stuff} cure {illness}? | Is it true that {stuff} causes {illness}?
    Is it true that {creature} can't jump? | Are {creature} blind? | How long do {creature} live? | Do {creature} sleep? | What do {creature} eat? | how fast can {creature} run
    What is the boiling point of {stuff}? | What is the chemical formula of {stuff}? | What are the side effects of {stuff}? | How much {stuff} is safe per day?
    What is the function of the {body}? | What are the symptoms of {illness}? | What causes {illness}? | How is {illness} treated? | Is {illness} contagious?
    How far is {planet} from the earth? | How many moons does {planet} have? | How hot is {planet}? | Is there water on {planet}? | how old is {planet}
    Who founded {company}? | When was {company} founded? | Who is the CEO of {company}? | Where is {company} based? | How many employees does {company} have?
    What does {law} say? | When was {law} passed? | Does {law} apply to {country}? | What are the penalties under {law}? | which countries signed {law}
    Who invented {invention}? | When was {invention} invented? | How does {invention} work? | Was {human} the inventor of {invention}? | which country invented {invention}
    I heard that {claim}. Is that true? | Is it true that {claim}? | {claim}, right? | {claim}. True or false? | Fact check: {claim}. | My friend says {claim}. Is he right?
    I read that {claim}. | Verify this: {claim} | Can you confirm that {claim}? | Did you know that {claim}? | Somebody told me {claim}, is there evidence? | is it a myth that {claim}?
    {ask} when {event} began | {ask} who wrote {work} | {ask} how many people live in {country} | {ask} whether {claim} | {ask} what {human} is known for
    Explain the causes of {event}. | Summarize the history of {country}. | Tell me about the life of {human}. | Give me five facts about {country}. | facts about {creature}
    Describe the role of {human} in {event}. | What was the impact of {event} on {country}? | List the main consequences of {event}. | Write an encyclopedia entry on {human}.
    Compare the {measure} of {country} and {country}. | Which is bigger, {country} or {country}? | Which country has the highest {measure}? | How does the {body} work?
    What percentage of people have {illness}? | How many people die of {illness} each year? | What do studies say about {stuff} and {illness}? | Which vitamin is in {food2}?
    Who won the Nobel Prize in {year}? | Who won the world cup in {year}? | Who was president of the US in {year}? | What happened in {year}? | who was the pope in {year}
    What is the speed of light? | What is the largest ocean? | What is the deepest lake? | What is the hardest mineral? | how many countries are in Africa
    Which of these is true about {country}? | Which organ produces insulin? | Which metal is liquid at room temperature? | what is the longest river in {country}
    Name the members of the European Union. | Name three rivers in {country}. | List the emperors of Rome in order. | Who are the members of {band}? | latest inflation figures for {country}
    Was {human} really poor? | Did {human} really say that? | Did {human} and {human} ever meet? | Is {planet} a star? | Are {creature} mammals? | Was {human} left-handed?
    What does the latest research say about {stuff}? | Who is the current world champion in chess? | What is the record for the longest flight? | How expensive was {event}?
    """
)
_FACT_EXTRA: Final = {
    "invention": lines(
        "the telescope | the steam engine | paper | the light bulb | dynamite | the microscope | radio | the transistor | the zipper | gunpowder | the internet | the compass"
    ),
    "claim": lines(
        """
        {stuff} causes {illness} | {creature} only live for a year | {human} was born in {country} | {country} has no army | {company} was founded in {year}
        {human} invented {invention} | {event} lasted ten years | the {body} regrows every seven years | {planet} is bigger than the earth | {creature} can see ultraviolet light
        {stuff} is made from oil | {country} banned {stuff} | {law} was repealed in {year} | you lose most heat through your head | lightning never strikes twice
        {creature} have three hearts | the earth is flat | vaccines cause {illness} | {company} bought {company} | {human} never went to school | bananas are radioactive
        cracking your knuckles causes arthritis | the moon affects sleep | {stuff} is good for the {body} | Mount Everest is in {country} | {event} started in {year}
        """
    ),
    "food2": lines("oranges | spinach | liver | carrots | salmon | eggs | lentils"),
    "band": lines("the Beatles | Queen | ABBA | U2 | Pink Floyd"),
}
_NO_FACTS: Final = lines(
    """
    Write a {text} about {topic} | Write a {text} about a {animal} and a {job} | Write a {thing} for {person} | Draft an email to {person} about {matter} | Compose a {text} for my {person2}
    Tell me a joke about {animal}s | Tell me a bedtime story | tell me a riddle | Continue my story: the {animal} opened the door | Invent a {adjective} monster | make up a name for my {animal}
    Rewrite this {thing} in a friendlier tone | Shorten this {thing} | Fix the grammar in this sentence | Proofread my {thing} | Translate this {thing} into {language} | how do you say good night in {language}
    Paraphrase the following {thing} | Summarize the {thing} below | Make this {thing} more formal | Turn these notes into a {thing} | Improve my {thing} | Give me feedback on my {thing}
    Write a {code} function that sorts a list | Refactor this {code} code | Fix the bug in my {code} script | Explain this {code} code line by line | Add unit tests to this {code} module
    How do I read a file in {code}? | write a regex for phone numbers | Convert this {code} loop to a comprehension | I get {problem} in {code}, what is wrong with my code? | create a Dockerfile for a {code} app
    Design an API for a {business} | Write a SQL query for all orders of a customer | optimize this {code} function | build a web page for my {business} in html | git command to undo my last commit
    What is {number} plus {number}? | What is {number} * {number}? | Solve 3x + {number} = 20 | Calculate the area of a circle with radius {number} | Simplify (a + b)^2 - {number}ab | integrate x^2 dx
    {name} has {number} apples and gives away 3. How many are left? | A train travels {number} km in 2 hours. How fast is it? | What is {number} percent of 80? | factor x^2 - {number}
    {name} buys {number} pens for 2 dollars each. How much does {name} pay? | A rope of {number} meters is cut into 4 pieces. How long is each piece? | prove that the sum of two even numbers is even
    Set an alarm for 7 | Set a timer for {number} minutes | Remind me to call {person} | Turn on the lights | Turn off the heating | Play some {music} | Next song | stop the music | volume up
    Add milk to my shopping list | Book a table for two | Schedule a meeting with {person} on Monday | Cancel my appointment | Transfer {number} dollars to {name} | What is my balance? | pay my electricity bill
    call {person} | text {person} that I'm late | what's on my calendar today | order a pizza | find my phone | I lost my card | I can't log in | where is my package | change my pin
    Hi | Hello! | How are you? | Good night | Thanks! | thank you so much | ok | That's great | I'm bored | I feel sad today | I'm nervous about my exam | Can we talk? | you are funny | nice to meet you
    What should I cook tonight? | What should I wear to a {event2}? | Give me ideas for {person2}'s birthday | Suggest a name for my {business} | Brainstorm slogans for a {business} | gift ideas for {person}
    Should I quit my job? | Should I buy the {adjective} one or the other? | How do I tell {person} that I'm leaving? | My {person2} is angry with me, what do I say? | How can I stay motivated? | I argued with my {person2}
    What do you think about {topic}? | Which do you prefer, cats or dogs? | What is your favorite color? | What's your name? | do you like {music}? | are you a robot? | what can you do | who made you
    Act as a {job} and talk to me | I want you to act as an interviewer | Pretend you are a {job} | Let's role-play: you are a {job} | Let's play a game | roll a dice | flip a coin | pick a number
    Plan a party for my {person2} | Make a packing list for a trip | Make a workout plan for me | Make a weekly meal plan with {food} | Plan a romantic evening | make a study schedule for {topic} | help me plan a {event2}
    Write a cover letter for a {job} position | Write a resume for a {job} | Write a birthday message for my {person2} | Write a toast for a {event2} | Write a tweet about my {business} | an apology to my {person2}
    Write lyrics about {topic} | Write a dialogue between a {job} and a {animal} | Write a scene in a {place2} | describe a {adjective} {place2} | Imagine a world without {topic}. What would it be like? | write a plot about {topic}
    Draw a {animal} | Generate an image of a {place2} | Create a logo for my {business} | a {picture} of {subject} | Give me a color palette for a {business} | Create a character for my novel | {make} {subject} {style}
    Make this shorter | Try again | Now in {language} | Give me another one | continue | Use simpler words | more formal please | add emojis | format it as a table | what do you mean? | that's wrong, redo it
    Convert this list to json | sort these names alphabetically | extract the emails from the text below | classify this review as positive or negative | rate my {thing} from 1 to 10 | count the words in this {thing}
    Help me write a wedding speech | help me choose between two jobs | help me practice {language}, you start | teach me to meditate | guide me through a breathing exercise | write a prayer for {person} | quiz me
    """
)
_NO_FACT_RULES: Final = {
    "matter": lines(
        "a delayed order | my vacation | the new schedule | a refund | our meeting | a missing invoice | my sick leave | the broken lift"
    ),
    "person2": lines(
        "sister | brother | friend | neighbour | girlfriend | boyfriend | dad | grandma | coach | roommate | boss | cousin"
    ),
    "event2": lines(
        "wedding | job interview | funeral | picnic | graduation | barbecue | baby shower | conference | date"
    ),
    "music": lines("jazz | rock | classical music | hip hop | country | techno | the blues | podcasts"),
    "name": lines("Anna | Tom | Maria | Ahmed | Lucy | Sven | Priya | Carlos | Mei | Olga | Jack | Fatima"),
}


def fact_check(chance: random.Random, size: int) -> list[tuple[str, str]]:
    """(text, label) pairs; the label is needed or not_needed."""
    rules = {
        **_FEEDBACK_RULES, **_TOPICS, **_PICTURE_RULES, **_TEXT_RULES, **_STYLES2, **_CLAIM_RULES, **_FACT_EXTRA, **_NO_FACT_RULES,
    }  # fmt: skip
    made = []
    for label, sentences in (("needed", _FACTS), ("not_needed", _NO_FACTS)):
        for index in range(size):
            text = expand(sentences[index % len(sentences)], rules, chance)
            if chance.random() < 0.5:
                text = text[:1].upper() + text[1:]
            made.append((casual(text, chance), label))
    return made
