"""The judges' own mathematics: written from the papers and the method's description, importing nothing of refsnn."""
