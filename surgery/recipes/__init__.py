"""Operations as a file: a recipe is read, checked before anything runs, and carried out."""
