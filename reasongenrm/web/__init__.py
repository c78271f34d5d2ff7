"""The web page: try the judge, chat with it, see the leaderboard. It asks the judge and loads no model."""
