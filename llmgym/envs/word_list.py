"""Words of the environments about words: common ones, and some with letters beyond ASCII."""

_COMMON = """
    apple arrow autumn badge baker banana basket beach bench bird blanket boat bottle branch bread
    bridge brother bucket butter button cabin camel candle carpet castle cherry circle clock cloud
    coat coffee copper corner cotton cousin cradle crown curtain dancer desert dinner doctor donkey
    dragon eagle earth engine farmer feather field finger flower forest fountain friend garden ghost
    giant glass glove gold grape guitar hammer harbor hat heart helmet honey horse house iron island
    jacket jungle kettle kitchen ladder lamp lemon letter library lion market meadow melon metal
    mirror monkey moon morning mountain mouse music napkin needle night notebook ocean onion orange
    orchard oven paint paper parrot pencil pepper piano picture pillow planet pocket potato puzzle
    queen rabbit rain ribbon river rocket roof rose saddle sailor salt sand school season shadow
    sheep shirt silver sister snow soldier song spider spoon spring square stable station stone
    storm street sugar summer sunset table teacher temple thunder ticket tiger tomato tower train
    tree tunnel turtle umbrella valley velvet village violin wagon wallet water whistle wind window
    winter wolf wood wool writer yard zebra
"""
COMMON = tuple(_COMMON.split())
"""Words of ASCII letters."""

ACCENTED = (
    "caf\u00e9",
    "na\u00efve",
    "gar\u00e7on",
    "jalape\u00f1o",
    "fa\u00e7ade",
    "\u00e9clair",
    "cr\u00e8me",
    "\u00fcber",
    "pi\u00f1ata",
    "se\u00f1or",
    "stra\u00dfe",
    "sm\u00f8rrebr\u00f8d",
)
"""Words with other letters of the Latin script."""

WORDS = (*COMMON, *ACCENTED)
