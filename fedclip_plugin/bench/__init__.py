"""``fedclip bench``: the operators' speed on this machine, against other ways.

``suite.run`` measures, ``tables`` and ``figure`` show.  All candidates of a row are
timed in turn in one process, so that other load hits all alike; per cents refer to the
FMA peak and the read bandwidth measured in the same run.
"""
