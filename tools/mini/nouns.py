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

# Plain at 64 px and with a word that everybody knows. A UNet trained on a CPU draws these alone: a
# noun needs to be seen some thousand times.
_CLEAR = """
cow, tiger, rabbit, cat, monkey, dog, pig, koala, camel, frog, wolf, panda, lion, unicorn, bat,
deer, gorilla, giraffe, zebra, hedgehog, kangaroo, hippopotamus, fox, mouse, dragon, crocodile,
turtle, t rex, whale, octopus, fish, blowfish, dolphin, shark, lobster, jellyfish, snail, ant,
honeybee, lady beetle, spider, butterfly, rooster, baby chick, penguin, eagle, duck, owl,
peacock, parrot, swan, tulip, cherry blossom, rose, hibiscus, sunflower, lotus, evergreen tree,
deciduous tree, palm tree, cactus, four leaf clover, maple leaf, mushroom, potted plant, tomato,
grapes, watermelon, lemon, banana, pineapple, red apple, green apple, pear, peach, strawberry,
kiwi fruit, coconut, blueberries, eggplant, avocado, cucumber, potato, carrot, ear of corn, hot
pepper, bell pepper, onion, hot dog, taco, pizza, bread, french fries, spaghetti, sushi,
popcorn, croissant, egg, pancakes, pretzel, cheese wedge, waffle, soft ice cream, ice cream,
doughnut, cookie, chocolate bar, candy, lollipop, birthday cake, pie, cupcake, honey pot, wine
glass, cocktail glass, beer mug, teapot, hot beverage, bubble tea, spoon, backpack, crown,
necktie, t shirt, jeans, dress, handbag, running shoe, high heeled shoe, boot, sunglasses,
scarf, socks, gem stone, ring, trophy, microphone, headphone, saxophone, guitar, trumpet, drum,
radio, light bulb, laptop, camera, television, candle, telephone, tennis, basketball, american
football, volleyball, soccer ball, baseball, bullseye, teddy bear, balloon, wrapped gift, jack o
lantern, christmas tree, kite, game die, crystal ball, racing car, locomotive, bus, ambulance,
fire engine, police car, taxi, sport utility vehicle, delivery truck, tractor, bicycle,
motorcycle, skateboard, stop sign, rocket, helicopter, flying saucer, airplane, ship, sailboat,
anchor, house, castle, church, tent, ferris wheel, volcano, mountain, umbrella, rainbow,
snowman, snowflake, star, sun, fire, droplet, key, locked, hammer, axe, scissors, magnet,
wrench, gear, shield, bomb, microscope, telescope, books, open book, scroll, alarm clock,
hourglass, door, bed, bathtub, chair, toilet, broom, basket, bucket, ghost, alien, robot, pile
of poo, clown, red heart, blue heart, money bag, coin, brain, tooth, bone, eye
"""
CLEAR = {" ".join(name.split()) for name in _CLEAR.split(",")}
