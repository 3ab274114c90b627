"""Plain words for ImageNet's classes: the words people use, and the classes that they cover."""

import re

# Numbers are those of ImageNet's 1,000 classes in the order of their WordNet ids; a class may have
# several names. Judged by eye from the class names; a class without an everyday word has none.
_NAMES = """
fish: 0-6 389-397 | shark: 2-4 | ray: 5-6 | goldfish: 1 | bird: 7-24 80-100 127-146 | chicken:
7-8 owl: 24 | eagle: 21-23 | duck: 97-98 | goose: 99 | swan: 100 | parrot: 87-90 | peacock: 84
flamingo: 130 | penguin: 145 | pelican: 144 | ostrich: 9 | stork: 127-128 | heron: 131-134
hummingbird: 94 | toucan: 96 | magpie: 18 | newt: 25-29 | frog: 30-32 | turtle: 33-37 lizard:
38-48 | iguana: 39 | chameleon: 40 47 | crocodile: 49-50 | dinosaur: 51 | snake: 52-68 scorpion:
71 | spider: 70 72-77 | centipede: 79 | elephant: 101 385-386 | kangaroo: 104 koala: 105 |
wombat: 106 | jellyfish: 107 | coral: 109 973 | worm: 110-111 | snail: 112-113 117 slug: 114-115
| crab: 118-121 125 | lobster: 122-124 | whale: 147-148 | seal: 149-150 dog: 151-268 | puppy:
151-158 259 | poodle: 265-267 | terrier: 179-203 | bulldog: 245 retriever: 205-209 | spaniel:
215-221 | shepherd dog: 224-235 | husky: 248-250 | pug: 254 dachshund: 161 | wolf: 269-272 |
hyena: 276 | fox: 277-280 | cat: 281-285 | kitten: 281-283 lynx: 287 | leopard: 288-290 | lion:
291 | tiger: 292 | cheetah: 293 | bear: 294-297 polar bear: 296 | meerkat: 299 | insect: 300-326
| beetle: 300-307 | ladybug: 301 | fly: 308 bee: 309 | ant: 310 | grasshopper: 311-312 | mantis:
315 | dragonfly: 319-320 | butterfly: 321-326 starfish: 327 | sea urchin: 328 | rabbit: 330-332
| hamster: 333 | hedgehog: 334 | squirrel: 335 beaver: 337 | guinea pig: 338 | horse: 339 603 |
zebra: 340 | pig: 341-343 | hippo: 344 cow: 345-346 690 | buffalo: 346-347 | sheep: 348-349 |
goat: 350 | deer: 351-353 | antelope: 351-353 camel: 354 | llama: 355 | ferret: 356-359 | otter:
360 | skunk: 361 | badger: 362 | armadillo: 363 sloth: 364 | monkey: 369-382 | ape: 365-368 |
orangutan: 365 | gorilla: 366 | chimpanzee: 367 lemur: 383-384 | panda: 388 | red panda: 387
airplane: 404 726 895 908 | airship: 405 417 | balloon: 417 | rocket: 657 744 812 | boat: 472
554 576 625 814 914 | canoe: 472 | sailboat: 484 780 871 914 | ship: 403 510 628 724 780
submarine: 833 | car: 436 468 511 573 627 661 717 751 817 | taxi: 468 | sports car: 511 817 751
toy car: 573 751 817 | racing car: 573 751 | jeep: 586 609 | van: 656 734 675 | minibus: 654
pickup truck: 717 | truck: 555 569 675 717 864 867 | fire truck: 555 | ambulance: 407 bus: 654
779 874 | train: 466 547 565 705 820 | tram: 829 874 | tractor: 595 856 866 forklift: 561 |
tank: 847 586 | bicycle: 444 671 | motorcycle: 665 670 | scooter: 670 tricycle: 870 | unicycle:
880 | wheel: 479 694 739 | sled: 450 537 795 | snowmobile: 802 cart: 428 603 612 690 791 | golf
cart: 575 | camper: 757 660 | parachute: 701 backpack: 414 | bag: 414 636 728 748 797 | school
bag: 414 | handbag: 636 748 | purse: 748 893 wallet: 893 | plastic bag: 728 | suitcase: 492 |
umbrella: 879 | basket: 588 790 | box: 478 519 492 crate: 519 | packet: 692 | barrel: 427 756 |
bucket: 463 | bowl: 659 809 | mixing bowl: 659 cup: 968 504 647 | mug: 504 | glass: 441 572 |
wine glass: 572 966 | plate: 923 | tray: 868 spoon: 910 618 | knife: 499 623 | can: 653 737 412
| tin can: 653 473 | soda can: 737 653 bottle: 440 720 737 898 907 901 | wine bottle: 907 |
water bottle: 898 | beer: 440-441 | jug: 725 899 901 | pitcher: 725 | teapot: 849 | kettle: 849
505 | coffee pot: 505 550 | pot: 469 521 544 738 flower pot: 738 | pan: 567 909 | wok: 909 |
strainer: 828 | vase: 883 | candle: 470 | lantern: 607 846 | torch: 862 818 | lamp: 846 619 |
lighter: 626 | ashtray: 666 | soap: 804 | perfume: 711 lipstick: 629 | lotion: 631 838 | cream:
631 551 | towel: 434 533 591 700 | toilet paper: 999 toothbrush: 696 | brush: 696 462 | broom:
462 840 | comb: 584 | mirror: 475 | sponge: 533 doll: 850 | toy: 850 865 573 611 717 719 | teddy
bear: 850 | stuffed animal: 850 | plush toy: 850 plushie: 850 | rubber duck: 97 876 | puzzle:
611 918 | pinwheel: 723 | piggy bank: 719 | mask: 643 puppet: 850 | statue: 708 863 682 |
figurine: 708 850 | robot: 570 715 | jack o lantern: 607 shoe: 630 770 502 774 514 | sneaker:
770 | running shoe: 770 | boot: 514 | cowboy boot: 514 sandal: 774 | slipper: 502 630 | clog:
502 | sock: 806 496 | glove: 658 | mitten: 658 hat: 439 452 515 808 | cap: 433 793 | helmet: 518
560 715 | crown: 439 857 | wig: 903 | scarf: 824 552 | shirt: 610 | jersey: 610 | sweater: 841
474 | coat: 568 617 869 | jacket: 568 474 | cloak: 501 dress: 578 601 399 | skirt: 655 689 775 |
jeans: 608 | pajamas: 697 | suit: 834 | tie: 906 457 451 bow tie: 457 | bikini: 445 | swimsuit:
638-639 445 842 | bra: 459 | apron: 411 | kimono: 614 uniform: 652 400 | poncho: 735 | diaper:
529 | necklace: 679 | jewelry: 679 | belt: 464 785 | ring: 679 glasses: 836-837 | sunglasses:
836-837 | goggles: 801 836 | watch: 531 826 | clock: 409 530 892 alarm clock: 409 530 | wall
clock: 892 | hourglass: 604 | sundial: 835 | compass: 635 camera: 732 759 | binoculars: 447 |
microscope: 633 | tripod: 872 | phone: 487 528 707 computer: 527 620 664 681 590 | laptop: 620
681 | keyboard: 508 878 | monitor: 664 782 | mouse: 673 television: 851 598 548 | radio: 754 |
speaker: 632 | microphone: 650 | remote control: 761 printer: 742 713 | projector: 745 |
joystick: 613 | cassette: 481 482 848 | headphones: 605 typewriter: 878 | calculator: 590 |
switch: 844 | fan: 545 | heater: 811 753 | iron: 606 washing machine: 897 534 | refrigerator:
760 | stove: 827 | oven: 544 766 | microwave: 651 toaster: 859 891 | vacuum cleaner: 882 | hair
dryer: 589 | sewing machine: 786 | scale: 778 guitar: 402 546 420 | violin: 889 486 | piano: 579
881 687 | drum: 541 822 | flute: 558 699 683 trumpet: 513 566 875 | saxophone: 776 432 | harp:
594 | accordion: 401 | harmonica: 593 whistle: 902 684 | bell: 442 494 | gong: 577 | maracas:
641 ball: 429 430 522 574 722 768 805 852 890 | baseball: 429 | basketball: 430 | football: 768
560 golf ball: 574 | tennis ball: 852 | soccer ball: 805 | volleyball: 890 | racket: 752 | ski:
795 dumbbell: 422 543 | skateboard: 770 | swing: 843 | tent: 672 | sleeping bag: 797 hammer: 587
| axe: 596 | saw: 491 | drill: 740 | screwdriver: 784 | screw: 783 | nail: 677 shovel: 792 |
wrench: 477 | toolbox: 477 | pliers: 477 | hook: 600 | chain: 488 | lock: 507 695 padlock: 695 |
key: 695 | safe: 771 | rope: 616 | ladder: 421 | plunger: 731 | can opener: 473 corkscrew: 512 |
ruler: 769 798 | pen: 418 563 749 | pencil: 709 418 767 | eraser: 767 paintbrush: 696 | book:
917 921 549 | comic book: 917 | notebook: 446 | envelope: 549 | menu: 922 gun: 413 763 764 |
sword: 777 | cannon: 471 | shield: 787 461 | arrow: 456 | bow: 456 | syringe: 845 stethoscope:
823 | pill: 720 | bandage: 419 | crutch: 523 | magnet: 635 | magnifying glass: 633 chair: 423
559 765 857 | rocking chair: 765 | armchair: 831 765 | sofa: 831 | bench: 703 table: 532 526 736
| desk: 526 | bed: 564 520 831 | cradle: 431 516 520 | pillow: 721 | blanket: 750 quilt: 750 |
carpet: 741 539 | curtain: 854 794 905 | bookcase: 453 | cabinet: 493 495 648 894 wardrobe: 894
| drawer: 493 553 | chest: 492 | door: 799 | window: 904-905 | bathtub: 435 876 sink: 896 |
toilet: 861 | shower: 794 | trash can: 412 | radiator: 753 | mailbox: 637 | fence: 489 716 912 |
wall: 825 | roof: 853 858 | flag: 557 | street sign: 919 | traffic light: 920 parking meter: 704
| gas pump: 571 | vending machine: 886 | slot machine: 800 | phone booth: 707 house: 425 660 853
| barn: 425 | castle: 483 698 | church: 497 663 | mosque: 668 | temple: 832 tower: 437 900 |
lighthouse: 437 | bridge: 821 839 888 | fountain: 562 | greenhouse: 580 monument: 649 682 873 |
yurt: 915 | windmill: 723 | shop: 415 454 509 582 788 860 | restaurant: 762 library: 624 |
prison: 743 | pier: 718 | dam: 525 | birdhouse: 448 | maze: 646 | stage: 819 food: 924-927
931-935 959 962-965 | soup: 925 926 | cake: 927 961 | ice cream: 928 | popsicle: 929 bread: 930
961 | bagel: 931 | pretzel: 932 | hamburger: 933 | hot dog: 934 | pizza: 963 burrito: 965 |
pasta: 959 | mashed potatoes: 935 | pie: 964 | meat: 962 | chocolate: 960 coffee: 967 504 |
drink: 966-969 | wine: 966 907 | fruit: 948-957 | apple: 948 | strawberry: 949 berries: 949 989
| orange: 950 | lemon: 951 | fig: 952 | pineapple: 953 | banana: 954 pomegranate: 957 |
vegetable: 936-946 | cabbage: 936 | broccoli: 937 | cauliflower: 938 zucchini: 939 943 |
pumpkin: 940-942 607 | cucumber: 943 | artichoke: 944 | bell pepper: 945 corn: 987 998 | acorn:
988 | nut: 988 990 | mushroom: 947 991-997 | flower: 985-986 984 | daisy: 985 plant: 738 580 984
| leaf: 326 | hay: 958 | honeycomb: 599 | spider web: 815 mountain: 970 | volcano: 980 | valley:
979 | cliff: 972 976 | beach: 977-978 | lake: 975 geyser: 974 | bubble: 971 | person: 981-983 |
diver: 983 | groom: 982
"""


def _classes(ranges: str) -> tuple[int, ...]:
    """'25-29 40' -> (25, 26, 27, 28, 29, 40)"""
    found: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


# Word -> numbers of the classes that it covers.
CLASSES = {
    word.strip(): _classes(ranges)
    for word, ranges in re.findall(r"([a-z ]+):((?: \d+(?:-\d+)?)+)", " ".join(_NAMES.split()))
}
