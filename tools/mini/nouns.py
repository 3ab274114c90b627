"""Which emoji are drawn, and what kind of thing each is."""

import re

# What can be drawn, recognised and named by a plain noun; faces, people, hands, signs, flags and
# letters are left out.
CATEGORIES = {
    "animal-mammal": "animal",
    "animal-bird": "bird",
    "animal-amphibian": "animal",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "bug",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "food",
    "food-asian": "food",
    "food-sweet": "sweet",
    "drink": "drink",
    "dishware": "dish",
    "place-building": "building",
    "place-religious": "building",
    "place-other": "place",
    "place-geographic": "place",
    "transport-ground": "vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "hotel": "object",
    "time": "clock",
    "sky & weather": "weather",
    "event": "decoration",
    "award-medal": "award",
    "sport": "sport",
    "game": "game",
    "arts & crafts": "craft",
    "clothing": "clothing",
    "sound": "instrument",
    "music": "instrument",
    "musical-instrument": "instrument",
    "phone": "device",
    "computer": "device",
    "light & video": "device",
    "book-paper": "book",
    "money": "money",
    "mail": "mail",
    "writing": "tool",
    "office": "tool",
    "lock": "tool",
    "tool": "tool",
    "science": "tool",
    "medical": "tool",
    "household": "household object",
    "other-object": "object",
    "face-costume": "creature",
    "heart": "heart",
    "body-parts": "body part",
}
# Parts of names (regular expressions) of what shares a category with drawable things.
_LEFT_OUT = r"""
oclock thirty sun-behind cloud-with umbrella-(on|with) moon-face quarter gibbous crescent-moon
new-moon japanese heart-(with|on|ex|dec)
(beating|broken|two|growing|revolving|sparkling|mending|grey|light-blue|brown|white|black)-heart
love-letter oncoming mailbox-with envelope-with
-with-(lines|slash|face|vertical|arrow|pen|key|raised) banknote yen chart-decreasing -tray
speaker- mobile-phone- satellite$ airplane- (1st|2nd|3rd)-place guide-dog service-dog bridge-at
cityscape sunrise sunset foggy night-with milky fog$ spiral-(cal|note) card- tear-off kaaba
hamsa placard identification elevator level-slider control-knobs musical-note bus-stop lifting
page- bookmark-tabs (green|blue|orange)-book open-file broken-chain low-battery linked incoming
-suit$ mahjong joker wedding love-hotel seat$ hot-springs tornado high-voltage biting
snowman-without two-hump glass-tilted-right railway-track motorway horizontal-traffic
construction$ label$ ledger hole$ with-decorative open-mailbox thong ^ox$ ewe$ ear-with safety-v
women mechanical nose$ rice-scene moon-viewing tickets carp building-construction houses$
derelict desert-island national-park camping globe world-map badminton cricket-game field-hockey
ice-hockey$ foot$ office-building department hotel$ hospital school$ bank$ post-office
convenience monorail trolleybus minibus aerial-tram mountain-(cable|rail) suspension light-rail
tram-car station$ railway-car white-cane optical dvd computer-disk chart e-mail postbox package$
ballot microbe pouring clinking-glasses liquid coral$ funeral
"""
LEFT_OUT = re.compile("|".join(_LEFT_OUT.split()))

# Too alike, too fine or too abstract for 64 px: left out there, so that each remaining noun is seen
# more often.
_UNCLEAR = """
cyclone, closed umbrella, full moon, glowing star, shooting star, thermometer, carousel horse,
roller coaster, barber pole, desert, playground slide, beach with umbrella, cooked rice, curry
rice, roasted sweet potato, oden, fish cake with swirl, pot of food, cooking, stuffed flatbread,
bowl with spoon, cut of meat, fondue, tamale, falafel, flatbread, moon cake, rice cracker,
dango, brown mushroom, leafy green, root vegetable, beans, seedling, herb, sheaf of rice, leaf
fluttering in wind, empty nest, shamrock, leafless tree, blossom, rosette, wilted flower,
tangerine, melon, mango, shaved ice, custard, amphora, fork and knife with plate, teacup without
handle, sake, clinking beer mugs, mate, tumbler glass, baby bottle, sparkler, tanabata tree,
pine decoration, reminder ribbon, red envelope, firecracker, sparkles, confetti ball, clothes,
purse, sari, lab coat, flat shoe, prayer beads, hair pick, ballet shoes, one piece swimsuit,
briefs, shorts, rescue workers helmet, military helmet, military medal, studio microphone,
musical score, postal horn, muted speaker, long drum, film frames, red paper lantern, telephone
receiver, pager, fax machine, camera with flash, videocassette, film projector, trackball, diya
lamp, electric plug, magnifying glass, running shirt, rugby football, ping pong, goal net,
martial arts uniform, curling stone, lacrosse, flying disc, framed picture, thread, sewing
needle, knot, slot machine, video game, mirror ball, articulated lorry, automobile, oil drum,
police car light, wheel, auto rickshaw, motorized wheelchair, manual wheelchair, motor scooter,
train, high speed train, stadium, house with garden, synagogue, hindu temple, mosque, classical
building, wood, file folder, calendar, pushpin, memo, black nib, clipboard, triangular ruler,
satellite antenna, unlocked, link, file cabinet, clamp, old key, hammer and wrench, petri dish,
drop of blood, crutch, hook, alembic, chains, x ray, fountain pen, paintbrush, water buffalo,
black cat, ram, boar, poodle, polar bear, hamster, chipmunk, badger, mammoth, otter, skunk,
bison, moose, orangutan, beaver, spouting whale, oyster, squid, shrimp, cricket, mosquito, fly,
worm, beetle, cockroach, spider web, hatching chick, phoenix, bird, dodo, wing, goose, turkey,
eyes, flexed biceps, leg, lungs, anatomical heart, goblin, alien monster, pink heart, orange
heart, money with wings, credit card, bookmark, rolled up newspaper, closed book, notebook,
hourglass not, timer clock, mantelpiece clock, moai, cigarette, headstone, coffin, small
airplane, ring buoy, passenger ship, motor boat, canoe, ferry, shower, couch and lamp, lotion
bottle, safety pin, roll of paper, sponge, razor, plunger, mouse trap, bubbles, fire
extinguisher, envelope, tropical fish
"""
UNCLEAR = {" ".join(name.split()) for name in _UNCLEAR.split(",")}
