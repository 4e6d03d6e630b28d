"""The word problems built into `llmgym/GSM8K-v0`, with worked solutions, written for it."""

TRAIN = [
    {
        "question": "A baker fills 6 trays with 12 rolls each and sells 50 rolls before noon. "
        "How many rolls are left?",
        "answer": "The baker makes 6*12 = <<6*12=72>>72 rolls.\n"
        "After noon, 72-50 = <<72-50=22>>22 rolls are left.\n#### 22",
    },
    {
        "question": "Ines reads 15 pages a day from Monday to Friday and 40 pages on the weekend. "
        "How many pages does she read in 3 weeks?",
        "answer": "From Monday to Friday she reads 15*5 = <<15*5=75>>75 pages.\n"
        "In a week she reads 75+40 = <<75+40=115>>115 pages.\n"
        "In 3 weeks she reads 115*3 = <<115*3=345>>345 pages.\n#### 345",
    },
    {
        "question": "A rope of 90 meters is cut into pieces of 7.5 meters. Each piece sells for "
        "$4. How many dollars do all the pieces bring?",
        "answer": "The rope gives 90/7.5 = <<90/7.5=12>>12 pieces.\n"
        "They bring 12*4 = $<<12*4=48>>48.\n#### 48",
    },
    {
        "question": "Tomas has 3 boxes with 24 crayons each. He gives a quarter of all crayons to "
        "his sister. How many does he keep?",
        "answer": "He has 3*24 = <<3*24=72>>72 crayons.\n"
        "His sister gets 72/4 = <<72/4=18>>18 crayons.\n"
        "He keeps 72-18 = <<72-18=54>>54 crayons.\n#### 54",
    },
    {
        "question": "A bus starts with 31 people. At the first stop 12 get off and 9 get on, at "
        "the second stop half of those inside get off. How many people are on the bus then?",
        "answer": "After the first stop there are 31-12+9 = <<31-12+9=28>>28 people.\n"
        "At the second stop 28/2 = <<28/2=14>>14 get off.\n"
        "Then 28-14 = <<28-14=14>>14 people are on the bus.\n#### 14",
    },
    {
        "question": "A garden has 8 rows of 9 tulips and 5 rows of 11 roses. How many more tulips "
        "than roses are there?",
        "answer": "There are 8*9 = <<8*9=72>>72 tulips.\nThere are 5*11 = <<5*11=55>>55 roses.\n"
        "There are 72-55 = <<72-55=17>>17 more tulips.\n#### 17",
    },
    {
        "question": "A printer makes 20 pages a minute. How many hours does it need for 6,000 "
        "pages?",
        "answer": "It needs 6000/20 = <<6000/20=300>>300 minutes.\n"
        "That is 300/60 = <<300/60=5>>5 hours.\n#### 5",
    },
    {
        "question": "Mara saves $35 a month for a year. A bicycle costs $510. How many dollars "
        "are missing?",
        "answer": "In a year she saves 35*12 = $<<35*12=420>>420.\n"
        "So 510-420 = $<<510-420=90>>90 are missing.\n#### 90",
    },
]

TEST = [
    {
        "question": "A farmer has 14 hens that lay 5 eggs a week each. Eggs are sold by the dozen. "
        "How many dozens are there after 6 weeks?",
        "answer": "In a week there are 14*5 = <<14*5=70>>70 eggs.\n"
        "In 6 weeks there are 70*6 = <<70*6=420>>420 eggs.\n"
        "That is 420/12 = <<420/12=35>>35 dozens.\n#### 35",
    },
    {
        "question": "A tank holds 250 liters. It loses 3 liters an hour and gains 1 liter an hour "
        "by rain. How many liters does a full tank hold after 20 hours?",
        "answer": "It loses 3-1 = <<3-1=2>>2 liters an hour.\n"
        "In 20 hours it loses 2*20 = <<2*20=40>>40 liters.\n"
        "It then holds 250-40 = <<250-40=210>>210 liters.\n#### 210",
    },
    {
        "question": "A ticket costs $9, and children pay a third of that. What do 2 adults and 4 "
        "children pay together, in dollars?",
        "answer": "A child pays 9/3 = $<<9/3=3>>3.\nThe adults pay 2*9 = $<<2*9=18>>18.\n"
        "The children pay 4*3 = $<<4*3=12>>12.\n"
        "Together they pay 18+12 = $<<18+12=30>>30.\n#### 30",
    },
    {
        "question": "Noor runs 2.5 kilometers on each of 4 days and twice that distance on the "
        "fifth day. How many kilometers does she run?",
        "answer": "On 4 days she runs 2.5*4 = <<2.5*4=10>>10 kilometers.\n"
        "On the fifth day she runs 2.5*2 = <<2.5*2=5>>5 kilometers.\n"
        "She runs 10+5 = <<10+5=15>>15 kilometers.\n#### 15",
    },
]
