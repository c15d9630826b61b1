"""What one does, or wants to; each line is one thing in its wordings."""

from __future__ import annotations

from router.cache_training.words import wordings

ACTIONS: tuple[tuple[str, ...], ...] = wordings(
    """
    lose weight | lose some weight | reduce weight | reduce my weight
    gain weight | put on weight
    lose belly fat | reduce belly fat | get rid of belly fat
    build muscle | gain muscle | build muscles
    get rid of acne | remove acne
    get rid of dandruff
    stop hair loss | prevent hair loss | stop losing hair
    stop smoking | quit smoking | give up smoking
    stop drinking | quit drinking
    sleep better | get better sleep
    wake up early | get up early | wake up early in the morning
    stop procrastinating | overcome procrastination | avoid procrastination
    be more confident | become more confident | gain confidence
    be happy | become happy
    make friends | make new friends | find new friends
    meet new people
    find a girlfriend | get a girlfriend
    get over a breakup | move on after a breakup
    forgive someone
    stop worrying
    control my anger | manage my anger
    improve my memory | increase my memory power
    improve my English | improve my English skills | get better at English
    improve my writing | improve my writing skills
    improve my handwriting | get better handwriting
    learn programming | learn to program | learn coding | learn to code
    learn Python | learn the Python language
    learn to cook | learn cooking
    learn to drive | learn driving
    learn to swim | learn swimming
    learn to dance
    play the guitar
    sing well | sing better
    draw well | draw better
    read faster | read more quickly | increase my reading speed
    write a book | write a novel
    write a resume | write a CV
    write a cover letter
    write an essay
    prepare for an interview | get ready for an interview | prepare for a job interview
    get a job | find a job
    get a job at Google | work at Google
    change careers | change my career
    ask for a raise | ask for a pay raise
    quit my job | leave my job | resign from my job
    start a business | start my own business | begin a business
    start a startup
    start a blog | create a blog
    start a YouTube channel | create a YouTube channel
    make money online | earn money online | make money on the internet | earn money on the internet
    make money fast | earn money quickly | make money quickly
    get rich | become rich
    save money
    invest money | invest my money
    invest in stocks | buy stocks
    invest in gold | buy gold
    buy a house | purchase a house | buy a home
    sell my house | sell my home
    rent an apartment | rent a flat
    buy a used car | purchase a used car
    fix a flat tire | repair a flat tire
    change a tire
    pay off my debt | get out of debt
    improve my credit score | raise my credit score
    file my taxes | do my taxes
    open a bank account
    close a bank account
    apply for a visa | get a visa
    apply for a passport | get a passport
    renew my passport
    move to Canada | immigrate to Canada
    study in Germany
    study abroad | study in another country
    travel the world | travel around the world
    learn a new language | learn a foreign language
    speak English fluently | become fluent in English
    pass the exam | pass an exam
    prepare for the GRE | study for the GRE
    get good grades | get better grades
    study effectively | study more effectively
    concentrate on my studies | focus on my studies | concentrate while studying
    write a research paper
    become a doctor | be a doctor
    become a pilot
    become a lawyer
    become a writer | become an author
    become an actor
    become a data scientist | become a data analyst
    become a software engineer | become a software developer
    hack a phone | hack into a phone
    reset my password | change my password
    recover my password | get my password back
    recover deleted photos | restore deleted photos | get deleted photos back
    delete my account | remove my account | delete my account permanently
    delete my Facebook account | remove my Facebook account
    block someone on Instagram
    unblock someone on Instagram
    get more followers on Instagram | increase my followers on Instagram | gain followers on Instagram
    get more views on YouTube | increase views on YouTube
    download videos from YouTube | download YouTube videos | save YouTube videos
    upload videos to YouTube | upload YouTube videos
    ask a question on Quora
    speed up my computer | make my computer faster
    speed up my internet connection | increase my internet speed
    install Linux
    install Windows 10
    uninstall Windows 10
    remove a virus from my computer | get rid of a virus on my computer
    take a screenshot
    transfer files from my phone to my computer
    unlock my phone
    charge my phone
    root my phone | root my Android phone
    create a website | build a website | make a website
    create an app | develop an app | build an app | make an app
    make a game | create a video game | develop a game
    sort a list in Python
    reverse a string in Python
    reverse a string in Java
    read a file in Python
    merge two branches in git
    undo a commit in git
    boil an egg | boil eggs
    cook rice | make rice
    make pizza | make a pizza
    make coffee
    bake bread
    clean my room
    clean a carpet
    remove a coffee stain | get rid of a coffee stain | get a coffee stain out
    unclog a drain
    get rid of ants | get ants out of the house
    get rid of mice | get mice out of the house
    kill mosquitoes | get rid of mosquitoes
    train a puppy | train my puppy
    train my dog | train a dog
    adopt a cat | adopt a kitten
    grow tomatoes
    grow taller | increase my height | become taller
    whiten my teeth | get whiter teeth
    treat a cold | cure a cold
    treat a burn
    lower my blood pressure | reduce my blood pressure
    stop snoring | prevent snoring
    donate blood | give blood
    get pregnant
    avoid pregnancy | prevent pregnancy
    plan a wedding
    get a divorce
    write a poem
    tell a joke
    overcome my fear of heights | get over my fear of heights
    overcome depression | deal with depression | get over depression
    deal with stress | cope with stress | manage stress
    be a good leader | become a good leader
    be successful | become successful | become successful in life
    change my life | change my life for the better
    find my passion | discover my passion
    vote in the election
    contact the support team | reach the support team
    cancel my subscription | end my subscription
    return an item | send an item back
    """
)
