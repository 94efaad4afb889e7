"""English word lists for corpus bias. Spellings of one word stand together, apart by a slash."""

GENDER_PAIRS: tuple[tuple[str, str], ...] = (
    ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls"), ("male", "female"), ("males", "females"),
    ("gentleman", "lady"), ("gentlemen", "ladies"), ("father", "mother"), ("fathers", "mothers"), ("son", "daughter"),
    ("sons", "daughters"), ("brother", "sister"), ("brothers", "sisters"), ("husband", "wife"), ("husbands", "wives"),
    ("uncle", "aunt"), ("uncles", "aunts"), ("nephew", "niece"), ("nephews", "nieces"), ("grandfather", "grandmother"),
    ("grandfathers", "grandmothers"), ("grandson", "granddaughter"), ("grandsons", "granddaughters"), ("dad", "mom"),
    ("dads", "moms"), ("daddy", "mommy"), ("papa", "mama"), ("king", "queen"), ("kings", "queens"), ("prince", "princess"),
    ("princes", "princesses"), ("duke", "duchess"), ("emperor", "empress"), ("boyfriend", "girlfriend"),
    ("boyfriends", "girlfriends"), ("bridegroom", "bride"), ("widower", "widow"), ("widowers", "widows"), ("heir", "heiress"),
    ("actor", "actress"), ("actors", "actresses"), ("waiter", "waitress"), ("waiters", "waitresses"), ("hero", "heroine"),
    ("heroes", "heroines"), ("steward", "stewardess"), ("landlord", "landlady"), ("chairman", "chairwoman"),
    ("chairmen", "chairwomen"), ("policeman", "policewoman"), ("policemen", "policewomen"), ("businessman", "businesswoman"),
    ("businessmen", "businesswomen"), ("congressman", "congresswoman"), ("spokesman", "spokeswoman"),
    ("schoolboy", "schoolgirl"), ("stepfather", "stepmother"), ("stepson", "stepdaughter"), ("godfather", "godmother"),
    ("wizard", "witch"), ("wizards", "witches"), ("monk", "nun"), ("monks", "nuns"), ("lad", "lass"), ("lads", "lasses"),
    ("sir", "madam"), ("mr", "mrs"), ("masculine", "feminine"), ("fatherhood", "motherhood"), ("manhood", "womanhood"),
)  # fmt: skip

NAME_PAIRS: tuple[tuple[str, str], ...] = (
    ("james", "emma"), ("john", "mary"), ("robert", "linda"), ("william", "elizabeth"), ("david", "susan"), ("thomas", "sarah"),
    ("charles", "margaret"), ("george", "alice"), ("henry", "jane"), ("edward", "anne"), ("michael", "jennifer"),
    ("richard", "patricia"), ("joseph", "barbara"), ("daniel", "jessica"), ("paul", "laura"), ("peter", "helen"),
    ("andrew", "emily"), ("samuel", "ruth"), ("arthur", "clara"), ("harry", "lucy"), ("tom", "nancy"), ("jack", "kate"),
    ("philip", "catherine"), ("stephen", "julia"), ("walter", "martha"), ("simon", "rachel"), ("brian", "karen"),
    ("kevin", "lisa"), ("martin", "carol"), ("oliver", "sophia"), ("noah", "olivia"), ("alexander", "charlotte"),
)  # fmt: skip

MALE = ("he", "him", "his", "himself", *(male for male, _ in GENDER_PAIRS))
FEMALE = ("she", "her", "hers", "herself", *(female for _, female in GENDER_PAIRS))

YOUNG = (
    "young", "younger", "youngest", "youth", "youthful", "child", "children", "kid", "kids", "teenager", "teenagers", "teen",
    "teens", "adolescent", "adolescents", "infant", "infants", "toddler", "toddlers", "juvenile",
)  # fmt: skip
OLD = (
    "old", "older", "oldest", "elderly", "aged", "ageing", "aging", "elder", "elders", "senior", "seniors", "pensioner",
    "pensioners", "retiree", "retirees", "retired", "grandparent", "grandparents", "veteran", "veterans",
)  # fmt: skip

RELIGIONS: dict[str, tuple[str, ...]] = {
    "christian": ("christian", "christians", "christianity", "church", "churches", "bible", "priest", "priests", "christ", "gospel"),
    "muslim": ("muslim", "muslims", "islam", "islamic", "mosque", "mosques", "quran", "imam", "imams", "koran"),
    "jewish": ("jewish", "jew", "jews", "judaism", "synagogue", "synagogues", "torah", "rabbi", "rabbis", "talmud"),
    "hindu": ("hindu", "hindus", "hinduism", "vedas", "brahmin", "brahmins", "krishna", "shiva", "vishnu", "ganesha"),
    "buddhist": ("buddhist", "buddhists", "buddhism", "buddha", "lama", "lamas", "nirvana", "dharma", "sutra", "sutras"),
}

_SINGULAR = (
    "accountant", "architect", "artist", "astronomer", "baker", "banker", "bishop", "butcher", "captain", "carpenter",
    "cashier", "chef", "clerk", "coach", "cook", "dancer", "dentist", "designer", "director", "doctor", "driver", "editor",
    "electrician", "engineer", "farmer", "firefighter", "gardener", "governess", "guard", "hairdresser", "historian",
    "housekeeper", "inventor", "janitor", "journalist", "judge", "lawyer", "librarian", "maid", "manager", "mathematician",
    "mechanic", "merchant", "midwife", "minister", "model", "musician", "nanny", "novelist", "nurse", "officer", "painter",
    "philosopher", "photographer", "physician", "pilot", "plumber", "poet", "president", "professor", "programmer",
    "receptionist", "sailor", "scholar", "scientist", "secretary", "servant", "sheriff", "singer", "soldier", "student",
    "surgeon", "tailor", "teacher", "therapist", "typist", "writer",
)  # fmt: skip
_PLURALS = {"midwife": "midwives", "nanny": "nannies", "secretary": "secretaries", "coach": "coaches", "governess": "governesses"}
OCCUPATIONS = tuple(f"{word}/{_PLURALS.get(word, word + 's')}" for word in _SINGULAR)

ADJECTIVES = (
    "active", "ambitious", "angry", "assertive", "beautiful", "bold", "brave", "brilliant", "calm", "careful", "charming",
    "clever", "cold", "confident", "cruel", "delicate", "dependent", "dirty", "dominant", "emotional", "faithful", "fierce",
    "foolish", "friendly", "gentle", "graceful", "handsome", "honest", "humble", "independent", "innocent", "intelligent",
    "jealous", "kind", "lazy", "logical", "loud", "lovely", "loyal", "modest", "nervous", "noble", "obedient", "passive",
    "patient", "peaceful", "polite", "powerful", "pretty", "proud", "quiet", "rational", "rich", "rude", "sensitive",
    "shy", "silly", "smart", "strong", "stubborn", "sweet", "tender", "violent", "vulgar", "warm", "weak", "wise",
)  # fmt: skip

TITLES = {"Lady": "Lord", "Lord": "Lady", "Sir": "Dame", "Dame": "Sir", "Miss": "Mr"}
"""Titles in front of a name, where `lady` and `sir` are no nouns."""

_LY_THINGS = """
    only family early lovely lonely elderly friendly ugly holy silly jolly daily weekly deadly lively likely
    unlikely motherly fatherly sisterly brotherly womanly manly queenly stately homely costly curly sickly ghostly
    heavenly belly ally reply folly melancholy monopoly assembly bodily worldly earthly orderly timely shapely comely
    goodly saintly cowardly lordly priestly princely burly slovenly emily lily fly sly
"""
LY_THINGS = frozenset(_LY_THINGS.split())
"""Words in -ly that are no adverbs."""

# Behind a possessive comes what is possessed. These words begin something else, so that `her` before them is the object
# `him`, and `his` before them stands alone as `hers`.
_NOT_OWNED = """
    a about above abroad according across after afterwards again against alive all almost alone along already also
    altogether always among an and another any anything anywhere apart are around as aside ask at awake away be because
    been before beforehand behind believe below beneath beside besides between beyond both bring but by came can come
    could did do does down during each eat either else enough enter ere even ever every everything everywhere except far
    feel for forever forget forth forward from further get give go gone had has have he her here herself him himself his
    hither how i if immediately in indeed instead into is it its itself just know less like looked looking lose lying made
    make many may me more much must my myself near nearly never no nobody none nor not nothing now of off often on once
    one onto or otherwise ought our out outside over perhaps put quickly quite rather remain respecting said say says
    see seem seemed send several shall she should since sit slowly so some somehow something sometimes somewhere soon
    speak standing still stood straight straightway such suddenly take tell than that the their them themselves then there
    these they this thither those though through throughout thus till to today together tomorrow tonight too toward
    towards try twice under understand unless until up upon upstairs us very via waiting was we well went were what
    whatever when whence whenever where wherever whether which while whilst who whom whose why with within without would
    yesterday yet you your yourself
"""
NOT_OWNED = frozenset(_NOT_OWNED.split())
