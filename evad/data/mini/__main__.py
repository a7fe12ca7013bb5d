"""`python -m evad.data.mini`, see `evad.data.mini.ava`."""

from evad.data.mini.ava import main

if __name__ == "__main__":
    main()
