"""How pictures and systems are judged."""
