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

# Plain at 64 px, unlike one another, and with a word that everybody knows. A UNet trained on a CPU
# draws these alone: a noun needs to be seen some thousand times.
_CLEAR = """
cow, tiger, rabbit, cat, monkey, dog, pig, koala, frog, panda, lion, unicorn, giraffe, zebra, fox,
mouse, crocodile, turtle, whale, octopus, fish, dolphin, lobster, snail, honeybee,
lady beetle, butterfly, rooster, baby chick, penguin, duck, owl, parrot, tulip, rose, sunflower,
evergreen tree, palm tree, cactus, four leaf clover, maple leaf, mushroom, grapes, watermelon,
lemon, banana, pineapple, red apple, strawberry, eggplant, avocado, carrot, ear of corn, pizza,
hot dog, bread, egg, pretzel, cheese wedge, soft ice cream, doughnut, cookie, lollipop,
birthday cake, wine glass, beer mug, teapot, backpack, crown, necktie, t shirt, handbag,
running shoe, boot, gem stone, trophy, guitar, drum, light bulb, television, candle, basketball,
soccer ball, bullseye, teddy bear, balloon, wrapped gift, jack o lantern, christmas tree, bus,
fire engine, police car, bicycle, stop sign, rocket, airplane, sailboat, house, castle, tent,
umbrella, rainbow, snowman, star, sun, fire, key, hammer, alarm clock, door, chair, bucket, ghost,
alien, robot, red heart
"""
CLEAR = {" ".join(name.split()) for name in _CLEAR.split(",")}
