"""The commands of ``hmasd``: each reads its options and leaves the work to other rooms, imported when it is run."""
