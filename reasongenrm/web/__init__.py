"""The web page: try the judge, chat with it, see the leaderboard. It asks the judge and loads no model.

app.py          the ASGI app: page, /healthz, /reports/...; guard.py in front of it
page.py         the three tabs and what is wired to what
judging.py      a pair: what was typed -> what is shown, as the judge streams it
chatting.py     a conversation: messages -> messages with the reason apart
board.py        the store's evaluations -> rows of the leaderboard, and reports
markup.py       records -> HTML, by templates that escape everything
words.py        verdicts and errors in words
"""
