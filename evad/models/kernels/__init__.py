"""Operations with a version of their own for some devices."""
