"""`python -m mhc_train` is `mhc-train`."""

from mhc_train.cli.app import main

if __name__ == "__main__":
    main()
