"""Judging a mail server from outside: `wire` observes, `checks` judge, `runner` puts the two together into a Report."""
