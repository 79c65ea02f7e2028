"""`python -m actstore` is `actstore-cli`."""

from actstore.cli import main

main()
